"""Import, sampling and export of checkpoints in the layout of unpublished originals."""

import pytest
import torch

from ddpm import instantiate
from ddpm.interop.networks import find as system
from ddpm.noise import SampleNoise
from ddpm.pipeline import build_pipeline
from ddpm.samplers import DDIM
from ddpm.training.checkpoint import find
from tests.interop.originals.walk import ddim, linear, sigmoid
from tests.reference_cases import filled, load_case, relative_error

OPENAI = {
    "iddpm_unet_cond_scale_shift": (
        "improved-diffusion",
        ["network.num_heads=4", "network.num_heads_upsample=2", "network.dropout=0.3"],
    ),
    "adm_unet": (
        "guided-diffusion",
        ["network.num_head_channels=16", "network.use_new_attention_order=true"],
    ),
}
CALLS, STEPS = 10, 100


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def sampled(start, **more):
    """Return the network of the imported run, its DDIM samples from x_T, and its codec."""
    network, process, spec = instantiate.trained(find("outputs/i", print), "ema")
    sampler, cpu = DDIM(steps=CALLS, spacing="trailing"), torch.device("cpu")
    pipeline = build_pipeline(network, process, sampler, spec.codec, device=cpu)
    return network, pipeline.sample(start, SampleNoise([]), **more), spec.codec


def check_pictures(codec, ours, theirs):
    """Compare samples before and after rounding to bytes."""
    assert relative_error(ours, theirs) < 1e-4
    assert (ours.abs() < 1).double().mean() > 0.1  # not all is clipped
    assert (codec.decode(ours).int() - codec.decode(theirs).int()).abs().max() <= 1
    assert (codec.decode(ours) == codec.decode(theirs)).double().mean() > 0.99


def check_same(written, expected):
    """Compare state dicts bit by bit."""
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        assert written[name].dtype == value.dtype
        assert torch.equal(written[name], value), name


@torch.no_grad()
@pytest.mark.parametrize("case", OPENAI)
def test_unets_of_openai(command, case):
    name, options = OPENAI[case]
    meta, arrays = load_case(case)
    weights = filled(meta["state_dict"])
    torch.save(weights, "ema_0.9999_000400.pt")
    torch.save({name: 2 * value for name, value in weights.items()}, "model000400.pt")
    files = ("file=model000400.pt", "ema=ema_0.9999_000400.pt", "size=16", "name=i")
    ended = command("import", f"source={name}", *files, *options)
    assert ended.status == 0, ended.err

    x, t, y = arrays["x"], arrays["t"], arrays["y"]
    start, labels = noise(2, 3, 16, 16), torch.tensor([7, 0])
    network, ours, codec = sampled(start, labels=labels)
    assert relative_error(network(x, t, y=y), arrays["out"]) < 1e-4

    def noise_of(x, t):
        return network(x, torch.full((2,), float(t)), y=labels)[:, :3]  # the rest is of variances

    check_pictures(codec, ours, ddim(noise_of, start, linear(1000), CALLS))

    for which, factor in (("ema", 1), ("raw", 2)):
        ended = command(
            "export", "ckpt=outputs/i", f"format={name}", f"weights={which}", "out=o.pt"
        )
        assert ended.status == 0, ended.err
        expected = {key: factor * value for key, value in weights.items()}
        check_same(torch.load("o.pt", weights_only=True), expected)


def rotary_entries(weights):
    """Return the rotary frequencies of 32 channels that each temporal attention stores."""
    ending = ".fn.fn.fn.to_qkv.weight"
    inside = [name for name in weights if name.endswith(ending) and "spatial" not in name]
    places = [name.removesuffix(ending) for name in inside]
    assert len(places) == 8
    frequencies = (10000.0 ** -(torch.arange(0, 32, 2).double() / 32)).float()
    return {f"{place}.fn.fn.fn.rotary_emb.freqs": frequencies for place in places}


def in_training(weights, fixed, alpha_bar):
    """Return a file of DiffPhyCon's trainer whose raw weights are twice the average."""
    before = torch.cat([torch.ones(1), alpha_bar[:-1]])
    tables = {"betas": (1 - alpha_bar / before).float(), "alphas_cumprod": alpha_bar.float()}
    frozen = {f"model.{name}": value for name, value in fixed.items()}
    raw = {**frozen, **{f"model.{name}": 2 * value for name, value in weights.items()}}
    average = {**frozen, **{f"model.{name}": value for name, value in weights.items()}}
    wrapped = {f"ema_model.{name}": value for name, value in {**tables, **average}.items()}
    return {
        "step": 1234,
        "model": {**tables, **raw},
        "opt": {"state": {}, "param_groups": []},
        "ema": {"initted": torch.tensor(True), "step": torch.tensor(1234), **wrapped},
        "scaler": None,
        "version": "1.5.4",
    }


@torch.no_grad()
def test_diffphycon(command):
    meta, arrays = load_case("unet3d_conv3d")
    weights = filled(meta["state_dict"])
    fixed = rotary_entries(weights)
    torch.save(in_training(weights, fixed, sigmoid(STEPS)), "model-1.pt")
    options = ("source=diffphycon", "file=model-1.pt", "size=[5,16,16]", "name=i")
    ended = command("import", *options)
    assert ended.status == 0, ended.err
    assert find("outputs/i", print).step == 1234

    start, condition = noise(2, 7, 5, 16, 16), noise(2, 7, 5, 16, 16).flip(0).clamp(-1, 1)
    network, ours, _ = sampled(start, condition=condition)
    x, t = arrays["x"].transpose(1, 2), arrays["t"]  # theirs has frames before channels
    assert relative_error(network(x, t).transpose(1, 2), arrays["out"]) < 1e-4

    def noise_of(x, t):  # of the first three channels; the others are given
        return network(torch.cat([x, condition[:, 3:]], dim=1), torch.full((2,), t))

    theirs = ddim(noise_of, start[:, :3], sigmoid(STEPS), CALLS)
    # The first step divides the rounding of the network's output by the 0.002 of signal there.
    assert relative_error(ours[:, :3], theirs) < 3e-4
    assert (theirs.abs() < 1).double().mean() > 0.1
    assert torch.equal(ours[:, 3:], condition[:, 3:])

    for which, factor in (("ema", 1), ("raw", 2)):
        ended = command("export", "ckpt=outputs/i", "format=diffphycon", f"weights={which}",
                        "out=o.pt")  # fmt: skip
        assert ended.status == 0, ended.err
        written = torch.load("o.pt", weights_only=True)
        for name, frequencies in fixed.items():
            torch.testing.assert_close(written.pop(name), frequencies, rtol=1e-6, atol=0)
        check_same(written, {key: factor * value for key, value in weights.items()})


def test_options_override_guesses_from_shapes(command):
    """Attention of 16 channels may be the default's 4 heads, or 2 of 8."""
    source = "denoising-diffusion-pytorch-1d"
    kwargs = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8}
    original = system(source)
    spec = original.from_kwargs({**original.defaults, **kwargs, "version": "2.3.4"}, {})
    state = spec.build().state_dict()
    torch.save({original.map_to(name): value for name, value in state.items()}, "net.pt")
    options = (f"source={source}", "file=net.pt", "size=8", "version=2.3.4")
    heads_options = ("network.attn_heads=2", "network.attn_dim_head=8")
    for name, extra, heads in (("a", (), [4, 4]), ("b", heads_options, [2, 8])):
        ended = command("import", *options, f"name={name}", *extra)
        assert ended.status == 0, ended.err
        model = find(f"outputs/{name}", print).config["model"]
        assert [model["mid_attn_heads"], model["mid_attn_dim_head"]] == heads
    ended = command("import", *options, "name=c", "network.attn_heads=8")
    assert (ended.status, ended.line) == (
        1,
        "ddpm-import: network.attn_heads=8: with attn_dim_head=4 has 32 channels, but the weights "
        "have 16; set both, since the weights determine only their product",
    )
