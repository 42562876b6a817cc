"""denoising-diffusion-pytorch: old networks, inference from weights, and trainer files."""

import pytest
import torch
from torch import Tensor

from ddpm.diffusion import (
    GaussianDiffusion,
    PredNoise,
    PredV,
    PredX0,
    cosine,
    linear,
    sigmoid,
)
from ddpm.errors import ConfigError
from ddpm.interop import import_network
from ddpm.interop.checkpoint_import import read_checkpoint
from ddpm.interop.export import export_model
from ddpm.interop.files import Parts
from ddpm.interop.foreign_format import NetworkSpec, bind
from ddpm.interop.lucidrains import _wrap
from ddpm.interop.networks import find
from ddpm.interop.unwrap import unwrap
from ddpm.models import IDDPMUNet, UNet
from tests.reference_cases import filled, load_case, relative_error

TWO, ONE = "denoising-diffusion-pytorch", "denoising-diffusion-pytorch-1d"
DIMS = {TWO: 2, ONE: 1}
SMALL = {"dim": 8, "dim_mults": (1, 2), "channels": 2}
OLD = {"weight_standardized": True, "attn_norm": "layer", "full_attn": False}
FORMS = {  # version: our options for its networks
    TWO: {
        "1.0.7": {**OLD, "divide_values": True},
        "1.7.0": {**OLD, "attn_norm": "rms", "divide_values": True},
        "1.7.3": {"divide_values": True, "full_attn": False},
        "1.8.14": {},
        "1.11.1": {"num_mem_kv": 4},
        "2.3.4": {"num_mem_kv": 4, "block_norm": "rms"},
    },
    ONE: {
        "1.0.7": OLD,
        "1.7.0": {**OLD, "attn_norm": "rms"},
        "1.8.14": {"full_attn": False},
        "2.3.4": {"block_norm": "rms", "full_attn": False},
    },
}
EVERY = [(source, version) for source, forms in FORMS.items() for version in forms]
DIFFUSION = GaussianDiffusion(cosine(num_steps=10), PredV(weighting="noise"))


def split(content):
    """Return the parts of a file."""
    return unwrap(content, TWO, find(TWO).anchors)


def under(prefix, state):
    """Return the entries with a prefix, which is removed."""
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def network(source: str = TWO, version: str = "1.8.14", channels: int = 2, **options) -> UNet:
    """Return a small network of ours of a form, with weights that depend on their names."""
    out = options.pop("out_channels", channels)
    self_condition = options.pop("self_condition", False)
    kwargs = {"dim": 8, "dim_mults": (1, 2), **FORMS[source][version], **options}
    dims = DIMS[source]
    net = UNet(channels, out, (8,) * dims, None, self_condition, dims=dims, **kwargs)
    net.load_state_dict(filled((name, w.shape) for name, w in net.state_dict().items()))
    return net.eval()


def foreign(source: str, version: str, net: UNet) -> dict[str, Tensor]:
    """Return its weights with the names of a version of the original."""
    wrapped = source == ONE or version in ("1.0.7", "1.7.0", "1.7.3")
    return {_wrap(name) if wrapped else name: w for name, w in net.state_dict().items()}


def spec_of(source: str, version: str | None, weights: dict[str, Tensor], **changes) -> NetworkSpec:
    original = find(source)
    kwargs = {**original.infer(weights), **changes}
    if version is not None:
        kwargs["version"] = version
    return original.from_kwargs(bind(source, original.defaults, kwargs), weights)


def exported(source: str, version: str, net: UNet, diffusion=DIFFUSION, **changes):
    """Return an exported file with an average that differs from the raw weights."""
    spec = spec_of(source, version, foreign(source, version, net), **changes)
    raw = net.state_dict()
    states = {"raw": raw, "ema": {name: w + 1 for name, w in raw.items()}}
    return export_model(source, spec, states, "ema", diffusion=diffusion, step=70, version=None)


def answers(net: torch.nn.Module, channels: int = 2, dims: int = 2) -> Tensor:
    x = torch.randn(2, channels, *(8,) * dims, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return net.eval()(x, torch.tensor([7, 600]))


def test_reference_case():
    meta, arrays = load_case("unet_weight_standardized")
    net = import_network(TWO, meta["kwargs"], filled(meta["state_dict"])).eval()
    assert sum(p.numel() for p in net.parameters()) == meta["parameters"]
    with torch.no_grad():
        assert relative_error(net(arrays["x"], arrays["t"]), arrays["out"]) < 1e-5
    back = {_wrap(name): list(w.shape) for name, w in net.state_dict().items()}
    assert back == {name: shape for name, shape in meta["state_dict"]}


@pytest.mark.parametrize(("source", "version"), EVERY)
def test_each_version_has_its_form(source, version):
    net = network(source, version)
    imported = import_network(source, {**SMALL, "version": version}, foreign(source, version, net))
    assert str(imported) == str(net)
    assert torch.equal(answers(imported, dims=DIMS[source]), answers(net, dims=DIMS[source]))


@pytest.mark.parametrize(
    ("source", "version", "default"),
    [
        (TWO, "1.0.7", "1.0.7"),
        (TWO, "1.7.3", "1.0.7"),
        (TWO, "1.8.14", "1.8.14"),
        (TWO, "1.11.1", "1.11.1"),
        (TWO, "2.3.4", "2.3.4"),
        (ONE, "1.0.7", "1.8.14"),
        (ONE, "1.8.14", "1.8.14"),
        (ONE, "2.3.4", "2.3.4"),
    ],
)
def test_form_is_inferred_from_weights_without_a_version(source, version, default):
    weights = foreign(source, version, network(source, version))
    spec = spec_of(source, None, weights)
    assert spec.options == spec_of(source, default, weights).options
    inferred = find(source).infer(weights).get("version")
    unique = version in ("2.3.4", "1.11.1") or (source, version) == (TWO, "1.8.14")
    assert inferred == (default if unique else None)


@pytest.mark.parametrize(
    ("version", "typical"),
    [
        ("0.32.0", "1.0.7"), ("1.6.4", "1.0.7"), ("1.7.2", "1.7.3"), ("1.8.0", "1.8.14"),
        ("1.8.15", "1.8.14"), ("1.9.0", "1.11.1"), ("2.0.0", "2.3.4"), ("3.1.4", "2.3.4"),
    ],
)  # fmt: skip
def test_versions_between(version, typical):
    weights = foreign(TWO, typical, network(TWO, typical))
    expected = spec_of(TWO, typical, weights).options
    assert spec_of(TWO, version, weights).options == expected


@pytest.mark.parametrize(
    ("source", "version", "options", "shown"),
    [
        (TWO, "1.8.14", {"dim": 16, "dim_mults": (1, 3, 2)}, {"dim": 16, "dim_mults": (1, 3, 2)}),
        (TWO, "1.8.14", {"dim_mults": (1,)}, {"dim_mults": (1,), "full_attn": (True,)}),
        (TWO, "1.0.7", {"dim_mults": (3,)}, {"dim_mults": (3,)}),
        (TWO, "1.8.14", {"full_attn": (True, False)}, {"full_attn": (True, False)}),
        (TWO, "2.3.4", {"full_attn": True}, {"full_attn": (True, True)}),
        (TWO, "2.3.4", {"init_dim": 12}, {"init_dim": 12}),
        (ONE, "2.3.4", {"init_dim": 12}, {"init_dim": 12}),
        (TWO, "2.3.4", {"attn_heads": 3}, {"attn_heads": 3, "attn_dim_head": 32}),
        (TWO, "2.3.4", {"attn_dim_head": (5, 8)}, {"attn_heads": 4, "attn_dim_head": (5, 8)}),
        (TWO, "1.11.1", {"attn_heads": (1, 2)}, {"attn_heads": (1, 2), "attn_dim_head": 32}),
        (TWO, "1.8.14", {"attn_dim_head": 4}, {"attn_dim_head": 4}),
        (TWO, "1.8.14", {"attn_dim_head": (4, 5)}, {"attn_dim_head": (4, 5)}),
        (ONE, "1.8.14", {"mid_attn_dim_head": 6}, {"attn_dim_head": 6}),
        (TWO, "1.0.7", {"self_condition": True}, {"self_condition": True}),
        (ONE, "2.3.4", {"self_condition": True}, {"self_condition": True}),
        (TWO, "1.8.14", {"out_channels": 4}, {"out_dim": 4, "learned_variance": True}),
        (ONE, "1.0.7", {"out_channels": 5, "channels": 3}, {"out_dim": 5, "channels": 3}),
        (
            TWO,
            "1.0.7",
            {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 6},
            {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 6},
        ),
    ],
)  # fmt: skip
def test_arguments_are_inferred_from_weights(source, version, options, shown):
    net = network(source, version, **options)
    weights = foreign(source, version, net)
    inferred = find(source).infer(weights)
    channels = options.get("channels", 2)
    plain = {"dim": 8, "dim_mults": (1, 2), "channels": channels, "out_dim": channels}
    more = {"self_condition": False, "learned_variance": False, "learned_sinusoidal_cond": False}
    expected = {**plain, "init_dim": shown.get("dim", 8), **more, **shown}
    quiet = {key: value for key, value in inferred.items() if key in expected}
    assert quiet == expected
    imported = import_network(source, {**inferred, "version": version}, weights)
    assert str(imported) == str(net)
    dims = DIMS[source]
    assert torch.equal(answers(imported, channels, dims), answers(net, channels, dims))


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({}, {"attn_heads", "attn_dim_head"}),
        ({"attn_dim_head": 8}, {"attn_heads", "attn_dim_head"}),  # or one head of 32
        ({"channels": 4, "out_channels": 5}, {"channels", "self_condition", "learned_variance"}),
        ({"resnet_block_groups": 4}, {"resnet_block_groups", "sinusoidal_pos_emb_theta"}),
    ],
)
def test_ambiguous_arguments_are_not_inferred(options, absent):
    weights = foreign(TWO, "1.8.14", network(**options))
    assert not absent & set(find(TWO).infer(weights))
    assert find(TWO).infer({}) == {}


@pytest.mark.parametrize(("source", "version"), EVERY)
def test_exported_file_can_be_imported_again(source, version, tmp_path):
    net = network(source, version, channels=3, self_condition=True)
    export = exported(source, version, net)
    content = export.content
    assert content["version"] == version and content["scaler"] is None and content["step"] == 70
    model, ema = content["model"], content["ema"]
    names = foreign(source, version, net)
    assert under("model.", model).keys() == names.keys()
    assert all(torch.equal(under("model.", model)[name], w) for name, w in names.items())
    assert all(torch.equal(w, model[name]) for name, w in under("online_model.", ema).items())
    assert ema["initted"].shape == () and bool(ema["initted"]) and int(ema["step"]) == 70
    groups = content["opt"]["param_groups"]
    assert groups[0]["params"] == list(range(len(names))) and content["opt"]["state"] == {}
    torch.save(content, tmp_path / "model-1.pt")
    imported = read_checkpoint(source, str(tmp_path / "model-1.pt"), None, None, None, {})
    assert imported.step == 70 and imported.process.schedule["num_steps"] == 10
    ours = net.state_dict()
    assert imported.raw.keys() == ours.keys() == imported.ema.keys()
    assert all(torch.equal(imported.raw[name], w) for name, w in ours.items())
    assert all(torch.equal(imported.ema[name], w + 1) for name, w in ours.items())
    again = import_network(source, {**export.kwargs, "version": version}, under("model.", model))
    assert str(again) == str(net)
    assert imported.spec.self_condition


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("with_online", [True, False])
def test_split(wrapper, with_online):
    raw = network().state_dict()
    ema = {name: w + 1 for name, w in raw.items()}
    tables = {"betas": torch.linspace(0.1, 0.2, 10)}
    model, average = ({**tables, **_put("model.", each)} for each in (raw, ema))
    state = {
        **_put("ema_model.", average),
        "initted": torch.tensor(True),
        "step": torch.tensor(3),
    }
    if with_online:
        state.update(_put("online_model.", model))
    data = {
        "step": 30,
        "model": _put(wrapper, model),
        "opt": {},
        "ema": state,
        "version": "1.8.14",
    }
    for parts in (split(data), split({**data, "ema": average})):
        assert (parts.step, parts.version) == (30, "1.8.14")
        assert parts.ema is not None and parts.buffers is not None
        assert _same(parts.raw, raw) and _same(parts.ema, ema)
        assert _same(dict(parts.buffers), tables)
    inside, alone = split(_put(wrapper, model)), split(_put(wrapper, raw))
    assert _same(inside.raw, raw) and _same(dict(inside.buffers or {}), tables)
    assert _same(alone.raw, raw) and not alone.buffers and alone.ema is None


@pytest.mark.parametrize("make", [linear, cosine, sigmoid])
@pytest.mark.parametrize("kind", [PredNoise, PredX0, PredV])
@pytest.mark.parametrize("num_steps", [25, 100, 1000])
@pytest.mark.parametrize("gamma", [None, 5.0, 1.7])
def test_process_is_inferred_from_the_tables(make, kind, num_steps, gamma):
    objective = kind(weighting="noise", min_snr_gamma=gamma)
    diffusion = GaussianDiffusion(make(num_steps=num_steps), objective)
    content = exported(TWO, "2.3.4", network(version="2.3.4"), diffusion).content
    parts = split(content)
    kwargs = bind(TWO, find(TWO).defaults, find(TWO).infer(parts.raw))
    process = find(TWO).process(kwargs, parts)
    assert process.schedule == {
        "_target_": f"ddpm.diffusion.{make.__name__}", "num_steps": num_steps,
    }  # fmt: skip
    assert process.objective == {
        "_target_": f"ddpm.diffusion.{kind.__name__}",
        "loss": "l2",
        "weighting": "noise",
        "min_snr_gamma": gamma,
    }
    assert process.diffusion["variance"] == "fixed_small"


@pytest.mark.parametrize(
    ("source", "version", "schedule", "objective"),
    [
        (TWO, "1.0.7", "sigmoid", {"_target_": "ddpm.diffusion.PredNoise", "loss": "l1"}),
        (
            TWO,
            "2.3.4",
            "sigmoid",
            {"_target_": "ddpm.diffusion.PredV", "loss": "l2", "weighting": "noise"},
        ),
        (ONE, "1.0.7", "cosine", {"_target_": "ddpm.diffusion.PredNoise", "loss": "l1"}),
        (ONE, "2.3.4", "cosine", {"_target_": "ddpm.diffusion.PredNoise", "loss": "l2"}),
    ],
)  # fmt: skip
def test_the_process_of_bare_weights_is_the_default(source, version, schedule, objective):
    parts = Parts(foreign(source, version, network(source, version)))
    kwargs = {**find(source).infer(parts.raw), "version": version}
    process = find(source).process(bind(source, find(source).defaults, kwargs), parts)
    expected = {"_target_": f"ddpm.diffusion.{schedule}", "num_steps": 1000}
    assert (process.schedule, process.objective) == (expected, objective)


def test_learned_variance_implies_predicted_noise():
    parts = Parts(network(out_channels=4).state_dict())
    kwargs = bind(TWO, find(TWO).defaults, find(TWO).infer(parts.raw))
    process = find(TWO).process(kwargs, parts)
    assert process.objective["_target_"] == "ddpm.diffusion.PredNoise"
    options = {key: process.diffusion[key] for key in ("variance", "loss", "vlb_weight")}
    assert options == {"variance": "learned_range", "loss": "hybrid", "vlb_weight": 1e-6}


def test_exported_tables_match_the_formulas():
    content = exported(TWO, "1.0.7", network(TWO, "1.0.7")).content
    model, bar = content["model"], DIFFUSION.schedule.alpha_bar
    assert torch.equal(model["p2_loss_weight"], torch.ones(10))
    assert torch.equal(model["alphas_cumprod"], bar.float())
    t, x = torch.arange(1, 10), torch.ones(9, 1)
    mean, variance = DIFFUSION.posterior(x, 0 * x, t, t - 1)
    torch.testing.assert_close(model["posterior_mean_coef1"][1:], mean[:, 0].float())
    torch.testing.assert_close(model["posterior_variance"][1:], variance.flatten().float())
    mean, _ = DIFFUSION.posterior(0 * x, x, t, t - 1)
    torch.testing.assert_close(model["posterior_mean_coef2"][1:], mean[:, 0].float())
    assert all(table.dtype == torch.float32 for table in model.values())


@pytest.mark.parametrize(
    ("source", "version", "options", "line"),
    [
        (
            TWO,
            "0.27.0",
            {},
            "kwargs.version=0.27.0: is not supported; the oldest supported version is 0.32.0",
        ),
        (
            ONE,
            "0.30.0",
            {},
            "kwargs.version=0.30.0: is not supported; the oldest supported version is 0.31.0",
        ),
        (
            TWO,
            "1.7.1",
            {},
            "kwargs.version=1.7.1: is not supported, because it standardises weights differently",
        ),
        (TWO, "new", {}, "kwargs.version=new: is not a version such as 1.8.14"),
        (
            TWO,
            "1.0.7",
            {},
            "kwargs.version=1.0.7: has different names and shapes; the weights are of "
            "1.8.0 to 1.8.15",
        ),
        (
            TWO,
            "1.8.14",
            {"num_mem_kv": 4},
            "the weights are of 1.9.0 to 1.11.1",
        ),
        (TWO, "1.8.14", {"num_mem_kv": 4, "block_norm": "rms"}, "are of 2.0.0 and later"),
    ],
)
def test_versions_that_contradict_the_weights_are_rejected(source, version, options, line):
    weights = foreign(source, "1.8.14", network(source, **options))
    with pytest.raises(ConfigError) as error:
        import_network(source, {**SMALL, "version": version}, weights)
    assert line in str(error.value)


def test_unsupported_old_versions_are_rejected():
    weights = {"init_conv.weight": torch.zeros(8, 2, 7, 7)}
    line = "kwargs.version: the weights are of a version before 0.32.0 "
    for name, shape in (("downs.0.3.weight", (8, 8, 4, 4)), ("mid_attn.fn.norm.b", (1, 8, 1, 1))):
        with pytest.raises(ConfigError) as error:
            import_network(TWO, SMALL, {**weights, name: torch.zeros(shape)})
        assert str(error.value).startswith(line)
    with pytest.raises(ConfigError) as error:
        import_network(
            TWO, {**SMALL, "full_attn": True}, foreign(TWO, "1.0.7", network(TWO, "1.0.7"))
        )
    assert str(error.value).startswith("kwargs.full_attn=true: requires version 1.8.0")


@pytest.mark.parametrize(
    ("source", "options", "line"),
    [
        (TWO, {"block_norm": "rms"}, "model.num_mem_kv=0: is not in any version of the original"),
        (TWO, {"num_mem_kv": 3}, "model.num_mem_kv=3: is not in any version of the original"),
        (TWO, {"attn_norm": "layer"}, "model.attn_norm=layer: is not in any version"),
        (TWO, {"weight_standardized": True}, "model.divide_values=false: is not in any version"),
        (TWO, {"divide_values": True}, "model.full_attn: must be false: version 1.7.3 has full"),
        (TWO, {"mid_attn_heads": 2}, "model.mid_attn_heads=2: must be that of the innermost level"),
        (TWO, {"mid_attn_dim_head": 2}, "model.mid_attn_dim_head=2: must be that of the innermost"),
        (TWO, {"init_dim": 16}, "model.init_dim=16: other than dim crashes"),
        (
            TWO,
            {**FORMS[TWO]["1.0.7"], "attn_heads": 2},
            "model.attn_heads=2: must be 4 at all levels in the original",
        ),
        (
            TWO,
            {**FORMS[TWO]["1.0.7"], "sinusoidal_pos_emb_theta": 5},
            "model.sinusoidal_pos_emb_theta=5: must be 10000 in the original's version 1.0.7",
        ),
        (ONE, {}, "model.full_attn: must be false at all levels in the original"),
        (ONE, {"full_attn": False, "attn_dim_head": 8}, "model.attn_dim_head=8: must be 32 at all"),
        (ONE, {**OLD, "mid_attn_heads": 2}, "model.attn_heads=2: must be 4 in"),
    ],
)
def test_networks_without_an_equivalent_are_rejected(source, options, line):
    with pytest.raises(ConfigError) as error:
        find(source).to_kwargs(_ours(source, options))
    assert str(error.value).startswith(line)


def test_networks_of_other_classes_are_rejected():
    spec = _ours(ONE, {"full_attn": False})
    for source, other, model in (
        (TWO, spec, "unet"),
        (ONE, NetworkSpec(IDDPMUNet, 2, 2, (8,), None, False, {}), "unet1d"),
    ):
        with pytest.raises(ConfigError, match=f"supports networks of model={model} only$"):
            find(source).to_kwargs(other)
    labelled = NetworkSpec(UNet, 2, 2, (8,), 10, False, spec.options)
    with pytest.raises(ConfigError, match=r"^num_classes=10: is not supported"):
        find(ONE).to_kwargs(labelled)


def test_unsupported_tables_are_rejected():
    with pytest.raises(ConfigError, match=r"^file: contains no network of denoising-diffusion"):
        split({"model": {"conv.weight": torch.zeros(1)}})
    raw, original = network().state_dict(), find(TWO)
    kwargs = bind(TWO, original.defaults, original.infer(raw))
    ones = torch.ones(10)
    betas = cosine(num_steps=10).betas.float()
    for tables, line in (
        ({"betas": 0.5 * ones}, "schedule: the 10 betas of the file, 0.5 to 0.5, are not those"),
        ({"betas": betas, "p2_loss_weight": 2 * ones}, "objective: the file weights its loss"),
        ({"betas": betas, "loss_weight": betas}, "objective: the file's loss weights are not"),
    ):
        with pytest.raises(ConfigError) as error:
            original.process(kwargs, Parts(raw, buffers=tables))
        assert str(error.value).startswith(line)


def test_a_version_for_export():
    net = network()
    spec = spec_of(TWO, "1.8.14", net.state_dict())
    states = {which: net.state_dict() for which in ("raw", "ema")}
    export = export_model(TWO, spec, states, "raw", diffusion=DIFFUSION, step=0, version="1.8.2")
    assert export.content["version"] == "1.8.2"
    with pytest.raises(
        ConfigError, match=r"^version=2.3.4: does not have this network.* 1.8.0 to 1.8.15"
    ):
        export_model(TWO, spec, states, "raw", diffusion=DIFFUSION, step=0, version="2.3.4")


def _ours(source: str, options: dict) -> NetworkSpec:
    """Return a network of ours with the options of a config."""
    plain = spec_of(source, "1.8.14", foreign(source, "1.8.14", network(source))).options
    default = {"full_attn": None, "mid_attn_heads": None, "mid_attn_dim_head": None}
    return NetworkSpec(
        UNet, 2, 2, (8,) * DIMS[source], None, False, {**plain, **default, **options}
    )


def _put(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def _same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize(
    ("version", "expected"), [("1.9.0", False), ("1.9.1", None), ("2.3.4", None)]
)
def test_no_full_attention_became_the_default_in_1_9_1(version, expected):
    original = find("denoising-diffusion-pytorch")
    kwargs = {**original.defaults, "dim": 8, "full_attn": False, "version": version}
    assert original.from_kwargs(kwargs, {}).options["full_attn"] is expected
