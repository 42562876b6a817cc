"""Imported video networks reproduce the recorded outputs of their systems."""

import pytest
import torch
from torch import Tensor

from ddpm.diffusion import cosine, linear, sigmoid
from ddpm.errors import ConfigError
from ddpm.interop import import_network
from ddpm.interop.files import Parts
from ddpm.interop.networks import find
from ddpm.interop.unwrap import unwrap
from ddpm.interop.video import VideoNetwork, _fixed_entries
from ddpm.models.unet3d import UNet3D
from tests.reference_cases import filled, load_case, relative_error

VIDEO, DIFFPHYCON = "video-diffusion-pytorch", "diffphycon"
CASES = {
    "unet3d_conv3d": DIFFPHYCON,
    "unet3d_factorised": VIDEO,
    "unet3d_factorised_group": VIDEO,
}
SMALL = {"dim": 8, "dim_mults": (1, 2), "channels": 2, "attn_heads": 2, "attn_dim_head": 8}


def split(content):
    """Return the parts of a file."""
    return unwrap(content, VIDEO, find(VIDEO).anchors)


def import_case(name: str):
    """Return the network of a case in eval mode, its metadata and its arrays."""
    meta, arrays = load_case(name)
    net = import_network(CASES[name], meta["kwargs"], filled(meta["state_dict"]))
    return net.eval(), meta, arrays


def weights_of(source: str = VIDEO, **kwargs) -> dict[str, Tensor]:
    """Return the weights, with the original's names, of a network of ours for its arguments."""
    original = find(source)
    arguments = {**original.defaults, **SMALL, **kwargs}
    ours = original.from_kwargs(arguments, {}).build().state_dict()
    return filled((original.map_to(name), value.shape) for name, value in ours.items())


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_reference_case(name):
    net, meta, arrays = import_case(name)
    assert sum(p.numel() for p in net.parameters()) == meta["parameters"]
    cond = {"cond": arrays["cond"]} if "cond" in arrays else {}
    assert relative_error(net(arrays["x"], arrays["t"], **cond), arrays["out"]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ["unet3d_factorised", "unet3d_factorised_group"])
def test_focus_on_the_present_is_the_originals(name):
    net, _, arrays = import_case(name)
    x, t, cond, mask = arrays["x"], arrays["t"], arrays.get("cond"), arrays["mask"]
    focused = net(x, t, cond=cond, focus_present_mask=mask)
    assert relative_error(focused, arrays["focused"]) < 1e-4
    assert relative_error(arrays["focused"], arrays["out"]) > 1e-3
    everywhere = net(x, t, cond=cond, focus_present_mask=torch.ones_like(mask))
    assert torch.equal(net(x, t, cond=cond, prob_focus_present=1.0), everywhere)


@torch.no_grad()
def test_null_conditions_and_guidance_are_the_originals():
    net, _, arrays = import_case("unet3d_factorised")
    x, t, cond = arrays["x"], arrays["t"], arrays["cond"]
    assert relative_error(net(x, t, cond=cond, null_cond_prob=1.0), arrays["null"]) < 1e-4
    assert relative_error(net(x, t), arrays["null"]) < 1e-4
    guided = net.forward_with_cond_scale(x, t, cond=cond, cond_scale=3.0)
    assert relative_error(guided, arrays["guided"]) < 1e-4


@torch.no_grad()
def test_probabilities_apply_per_sample():
    net = import_network(VIDEO, {**SMALL, "cond_dim": 3}, weights_of(cond_dim=3)).eval()
    x, t, cond = noise(4, 2, 3, 2, 2), torch.arange(4), noise(4, 3)
    torch.manual_seed(1)
    focus, null = torch.rand(4) < 0.5, torch.rand(4) < 0.3
    assert focus.any() and null.any() and not (focus.all() or null.all())
    torch.manual_seed(1)
    drawn = net(x, t, cond, null_cond_prob=0.3, prob_focus_present=0.5)
    expected = net.network(x, t, cond=cond, null_cond=null, focus_present_mask=focus)
    assert torch.equal(drawn, expected)
    torch.manual_seed(1)
    net(x, t, cond, null_cond_prob=1.0, prob_focus_present=1.0)
    assert torch.equal(torch.rand(4) < 0.5, focus)  # a certainty takes no random number


@torch.no_grad()
def test_diffphycon_has_frames_before_channels():
    net = import_network(DIFFPHYCON, {**SMALL, "out_dim": 5}, weights_of(DIFFPHYCON, out_dim=5))
    x, t, mask = noise(2, 3, 2, 4, 4), torch.tensor([1, 9]), torch.tensor([True, False])
    assert net(x, t).shape == (2, 3, 5, 4, 4)
    expected = net.network(x.transpose(1, 2), t, focus_present_mask=mask).transpose(1, 2)
    assert torch.equal(net(x, t, focus_present_mask=mask), expected)
    assert torch.equal(net.forward_with_cond_scale(x, t, focus_present_mask=mask), expected)


@pytest.mark.parametrize("source", [VIDEO, DIFFPHYCON])
@pytest.mark.parametrize(
    ("kwargs", "shown"),
    [
        ({}, {}),
        ({"cond_dim": 5}, {"cond_dim": 5}),
        ({"use_bert_text_cond": True, "cond_dim": 5}, {"cond_dim": 768}),
        ({"use_sparse_linear_attn": False}, {"use_sparse_linear_attn": False}),
        ({"init_kernel_size": 3}, {"init_kernel_size": 3}),
        ({"attn_heads": 3, "attn_dim_head": 16}, {"attn_heads": 3, "attn_dim_head": 16}),
        ({"dim": 16, "dim_mults": (1, 2, 4)}, {"dim": 16, "init_dim": 16, "dim_mults": (1, 2, 4)}),
        ({"init_dim": 16}, {"init_dim": 16}),
        ({"out_dim": 7}, {"out_dim": 7}),
        ({"channels": 1}, {"channels": 1, "out_dim": 1}),
        ({"resnet_groups": 4, "block_type": "resnet"}, {}),
    ],
)
def test_arguments_are_used_and_can_be_inferred(source, kwargs, shown):
    original, weights = find(source), weights_of(source, **kwargs)
    seen = {"init_dim": 8, "out_dim": 2, "init_kernel_size": 7, "use_sparse_linear_attn": True}
    inferred = original.infer(weights)
    assert inferred == {"cond_dim": None, **SMALL, **seen, **shown}
    arguments = {**original.defaults, **SMALL, **kwargs}
    spec = original.from_kwargs(arguments, weights)
    again = original.from_kwargs({**arguments, **inferred}, weights)
    assert (again.channels, again.out_channels) == (spec.channels, spec.out_channels)
    assert again.size == spec.size == (1, *(2 ** (len(arguments["dim_mults"]) - 1),) * 2)
    assert spec.options == {**again.options, "init_dim": kwargs.get("init_dim")}
    assert spec.options["focus_init"] is False
    assert isinstance(import_network(source, {**SMALL, **kwargs}, weights), VideoNetwork)


def test_differences_between_the_two_systems():
    spec = [
        find(name).from_kwargs({**find(name).defaults, "dim": 8}, {}) for name in CASES.values()
    ]
    conv3d, factorised, _ = spec
    assert (conv3d.channels, factorised.channels) == (6, 3)
    assert conv3d.options["conv"] == "full" and factorised.options["conv"] == "factorised"
    assert conv3d.options["block_norm"] == "group" and factorised.options["block_norm"] == "rms"
    assert (conv3d.options["attn_heads"], factorised.options["attn_heads"]) == (4, 8)
    assert find(VIDEO).infer({}) == {}


@pytest.mark.parametrize("name", ["unet3d_factorised", "unet3d_factorised_group"])
def test_all_names_map_to_ours_and_back(name):
    net, meta, _ = import_case(name)
    original, network = find(CASES[name]), net.network
    back = {original.map_to(key): list(value.shape) for key, value in network.state_dict().items()}
    fixed = {key: list(value.shape) for key, value in _fixed_entries(network).items()}
    assert {**back, **fixed} == {key: shape for key, shape in meta["state_dict"]}
    assert {original.map_from(key) for key in fixed} == {""}
    assert all(original.map_from(original.map_to(key)) == key for key in network.state_dict())


@torch.no_grad()
def test_stored_frequencies_change_nothing():
    weights = weights_of()
    plain = import_network(VIDEO, SMALL, weights).eval()
    with_them = {**weights, **_fixed_entries(plain.network)}
    assert len(with_them) == len(weights) + 6
    again = import_network(VIDEO, SMALL, with_them).eval()
    x, t = noise(1, 2, 3, 2, 2), torch.tensor([5])
    assert torch.equal(again(x, t), plain(x, t))


@pytest.mark.parametrize(
    ("source", "kwargs", "line"),
    [
        (VIDEO, {"dims": 3}, "kwargs.dims=3: is not an argument of video-diffusion-pytorch's"),
        (
            VIDEO,
            {"init_kernel_size": 5},
            "state_dict.init_conv.weight=[8,2,1,7,7]: the network has the shape [8,2,1,5,5] there",
        ),
        (
            DIFFPHYCON,
            {},
            "state_dict.init_conv.weight=[8,2,1,7,7]: the network has the shape [8,2,7,7,7] there",
        ),
        (
            VIDEO,
            {"cond_dim": 2},
            "state_dict.downs.0.0.mlp.1.weight=[16,32]: the network has the shape [16,34] there",
        ),
    ],
)
def test_error_lines(source, kwargs, line):
    with pytest.raises(ConfigError) as error:
        import_network(source, {**SMALL, **kwargs}, weights_of())
    assert line in str(error.value)


def test_split_a_file_of_the_video_trainer():
    raw, ema = weights_of(), {key: value + 1 for key, value in weights_of().items()}
    tables = {"betas": torch.linspace(0.1, 0.2, 10), "alphas_cumprod": torch.ones(10)}
    model, average = ({**tables, **_under("denoise_fn.", each)} for each in (raw, ema))
    parts = split({"step": 70, "model": model, "ema": average, "scaler": {}})
    assert parts.step == 70 and parts.version is None
    assert _same(parts.raw, raw) and _same(parts.ema, ema) and _same(parts.buffers, tables)
    import_network(VIDEO, SMALL, parts.ema)


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_split_a_file_of_diffphycons_trainer(wrapper):
    raw, ema = weights_of(DIFFPHYCON), {k: w + 1 for k, w in weights_of(DIFFPHYCON).items()}
    tables = {"betas": torch.linspace(0.1, 0.2, 10)}
    model = {**tables, **_under("model.", raw)}
    average = {**tables, **_under("model.", ema)}
    state = {
        **_under("online_model.", model),
        **_under("ema_model.", average),
        "initted": torch.tensor(True),
        "step": torch.tensor(30),
    }
    data = {
        "step": 30,
        "model": _under(wrapper, model),
        "opt": {},
        "ema": state,
        "scaler": None,
    }
    parts = split(data)
    assert parts.step == 30
    assert _same(parts.raw, raw) and _same(parts.ema, ema) and _same(parts.buffers, tables)


def test_split_bare_weights_and_invalid_content():
    raw = weights_of()
    parts = split(raw)
    assert _same(parts.raw, raw) and parts.ema is None and parts.buffers == {}
    assert parts.step is None
    with pytest.raises(ConfigError) as error:
        split({"model": {"conv.weight": torch.zeros(1)}})
    line = "file: contains no network of video-diffusion-pytorch"
    assert str(error.value) == line


def test_imported_networks_can_be_trained():
    net = import_network(VIDEO, SMALL, weights_of())
    assert isinstance(net.network, UNet3D) and net.training
    net(noise(2, 2, 3, 2, 2), torch.tensor([1, 2])).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def _same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize(
    ("source", "default"),
    [(VIDEO, cosine(num_steps=40, max_beta=0.9999)), ("diffphycon", sigmoid(num_steps=40))],
)
def test_the_schedule_is_that_of_the_files_betas(source, default):
    def schedule(betas):
        return find(source).process({}, Parts({}, buffers={"betas": betas.float()})).schedule

    node = schedule(default.betas)
    assert node["num_steps"] == 40
    assert node["_target_"].endswith("cosine" if source == VIDEO else "sigmoid")
    assert schedule(linear(num_steps=200).betas) == {
        "_target_": "ddpm.diffusion.linear",
        "num_steps": 200,
    }
    with pytest.raises(ConfigError, match=r"schedule: the 30 betas of the file, .* add schedule="):
        schedule(torch.linspace(0.001, 0.5, 30))
    assert find(source).process({}, Parts({})).schedule["num_steps"] == 1000


def test_loss_weights_of_another_objective_are_rejected():
    buffers = {"betas": sigmoid(num_steps=40).betas.float(), "loss_weight": torch.rand(40)}
    with pytest.raises(ConfigError, match=r"objective: .*add objective="):
        find("diffphycon").process({}, Parts({}, buffers=buffers))
