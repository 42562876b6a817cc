"""Networks are located in files with all kinds of wrappers."""

from collections import OrderedDict
from functools import cache

import pytest
import torch

from ddpm.diffusion import linear
from ddpm.errors import ConfigError
from ddpm.interop.checkpoint_import import read_checkpoint
from ddpm.interop.files import read
from ddpm.interop.lucidrains_versions import MARK
from ddpm.interop.networks import SOURCES
from ddpm.interop.unwrap import plain, unwrap
from ddpm.models import IDDPMUNet, SimpleUNet, UNet, UNet3D
from tests.reference_cases import filled

_ADM = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "num_heads": 4}
_LUCID = {"dim": 8, "dim_mults": (1, 2)}
_SEQUENCE = {"dims": 1, "full_attn": False, "block_norm": "group", "num_mem_kv": 0}
_IMAGE = {"dims": 2, "block_norm": "rms", "num_mem_kv": 4}
_VIDEO = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8, "focus_init": False}
NETWORKS = {
    "improved-diffusion": (IDDPMUNet, (8, 8), {**_ADM, "attention_resolutions": (2,)}),
    "guided-diffusion": (
        IDDPMUNet,
        (8, 8),
        {**_ADM, "attention_resolutions": (2,), "resblock_updown": True},
    ),
    "denoising-diffusion-pytorch": (UNet, (8, 8), {**_LUCID, **_IMAGE}),
    "denoising-diffusion-pytorch-1d": (UNet, (8,), {**_LUCID, **_SEQUENCE}),
    "video-diffusion-pytorch": (UNet3D, (2, 8, 8), {**_VIDEO, "conv": "factorised"}),
    "diffphycon": (UNet3D, (2, 8, 8), {**_VIDEO, "conv": "full", "block_norm": "group"}),
    "simple-unet": (SimpleUNet, (8, 8), {"width": 8, "time_dim": 16}),
}
# Further arguments of these small networks, which cannot be inferred.
NAMED = {"denoising-diffusion-pytorch-1d": {"attn_heads": 4, "attn_dim_head": 32}}


@cache
def weights_of(source, seed=""):
    """Return a state dict of a small network with the names of its system."""
    target, size, options = NETWORKS[source]
    original, network = SOURCES[source], target(3, 3, size, None, False, **options)
    shapes = ((f"{seed}{name}", value.shape) for name, value in network.state_dict().items())
    weights = {n.removeprefix(seed): value for n, value in filled(shapes).items()}
    fixed = {name: value for name, value in original.extra(network).items() if name != MARK}
    return {**{original.map_to(name): value for name, value in weights.items()}, **fixed}


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


TABLES = {name: torch.rand(50) for name in ("alphas_cumprod", "sqrt_recip_alphas_cumprod")}
LIGHTNING = {
    "epoch": 3, "global_step": 120, "pytorch-lightning_version": "2.4.0", "lr_schedulers": [],
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
    "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.1), "kth_value": {}}},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1.0}]}],
    "hyper_parameters": {"lr": 1e-4, "dims": [1, 2], "betas": torch.ones(9)},
}  # fmt: skip
EXTRAS = {
    "epoch": 5, "loss": torch.tensor(0.3), "losses": [0.4, 0.3], "best_loss": 0.2, "args": {"a": 1},
    "optimizer": {"state": {0: {"exp_avg": torch.ones(4, 4)}}, "param_groups": []},
    "lr_scheduler": {"last_epoch": 3}, "scaler": None, "rng_state": torch.ones(8).byte(),
    "num_batches_tracked": torch.tensor(4), "step": 120,
}  # fmt: skip
COUNTERS = {"initted": torch.tensor([True]), "step": torch.tensor(9)}
# By name: the file, and which of two networks are the raw weights and the average in it.
WRAPPINGS = {
    "alone": (lambda a, b: a, "a-"),
    "OrderedDict": (lambda a, b: OrderedDict(a), "a-"),
    "module.": (lambda a, b: under("module.", a), "a-"),
    "compiled": (lambda a, b: under("_orig_mod.", a), "a-"),
    "both": (lambda a, b: under("_orig_mod.module.", a), "a-"),
    "parts compiled": (
        lambda a, b: {n.replace(".", "._orig_mod.", 1): v for n, v in a.items()}, "a-"
    ),
    "deep": (lambda a, b: {"state_dict": {"model": under("module.model._orig_mod.net.", a)}}, "a-"),
    "in a list": (lambda a, b: [a, {"param_groups": []}, 3], "a-"),
    "model": (lambda a, b: {"model": a, **EXTRAS}, "a-"),
    "net": (lambda a, b: {"net": under("module.", a)}, "a-"),
    "model_state_dict": (lambda a, b: {"model_state_dict": a, "optimizer_state_dict": {}}, "a-"),
    "extras among the weights": (lambda a, b: {**a, **EXTRAS, **TABLES, "betas": [1]}, "a-"),
    "Lightning": (lambda a, b: {"state_dict": under("model.", a), **LIGHTNING}, "a-"),
    "Lightning with EMA": (
        lambda a, b: {
            "state_dict": {**under("unet.", a), **under("ema_model.module.", b), **TABLES},
            **LIGHTNING,
        },
        "ab",
    ),
    "Lightning callback": (
        lambda a, b: {**LIGHTNING, "state_dict": a, "callbacks": {"EMA": {"ema_weights": b}}}, "ab"
    ),
    "latent diffusion": (
        lambda a, b: {
            "state_dict": {
                **under("model.diffusion_model.", a), "logvar": torch.ones(50), **TABLES,
                **{f"model_ema.diffusion_model{n.replace('.', '')}": v for n, v in b.items()},
                "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3),
            }
        },
        "ab",
    ),
    "ema-pytorch": (
        lambda a, b: {**COUNTERS, **under("online_model.", a), **under("ema_model.", b)}, "ab"
    ),
    "ema-pytorch without the raw weights": (
        lambda a, b: {**COUNTERS, **under("ema_model.", b)}, "-b"
    ),
    "a trainer": (
        lambda a, b: {
            "step": 120, "opt": {"state": {}}, "scaler": None, "version": "1.8.14",
            "model": {**under("model.", a), **TABLES},
            "ema": {
                **COUNTERS, **under("online_model.model.", a), **under("ema_model.model.", b),
                **under("ema_model.", TABLES),
            },
        },
        "ab",
    ),
    "denoise_fn": (lambda a, b: {"model": under("denoise_fn.", a), "ema": under("denoise_fn.", b)},
                   "ab"),
    "ema alone": (lambda a, b: {"ema": under("module.", b)}, "-b"),
    "ema of ema": (lambda a, b: {"ema": {"ema_model": under("model.", b)}}, "-b"),
    "params": (lambda a, b: {"params": a, "params_ema": b}, "ab"),
    "model and ema": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "ab"),
    "modelEMA": (lambda a, b: {"modelEMA": b, "model": a}, "ab"),
    "AveragedModel": (
        lambda a, b: {"net": a, "swa": {"n_averaged": torch.tensor(3), **under("module.", b)}}, "ab"
    ),
    "AveragedModel alone": (
        lambda a, b: {"n_averaged": torch.tensor(3), **under("module.", b)}, "-b"
    ),
    "the same twice": (lambda a, b: {"model": a, "state_dict": dict(a), "ema": b}, "ab"),
}  # fmt: skip


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("source", NETWORKS)
def test_every_source_in_every_wrapping(source, wrapping):
    wrap, which = WRAPPINGS[wrapping]
    raw, average = weights_of(source), weights_of(source, "ema")
    parts = unwrap(wrap(raw, average), source, SOURCES[source].anchors)
    assert same(parts.raw, average if which == "-b" else raw)
    assert parts.only_average == (which == "-b")
    if which == "a-":
        assert parts.ema is None
    else:
        assert parts.ema is not None and same(parts.ema, average)


def test_all_sources_are_tested():
    assert NETWORKS.keys() == SOURCES.keys()


@pytest.mark.parametrize("source", NETWORKS)
def test_a_lightning_file_becomes_our_network(source, tmp_path):
    state = under("model._orig_mod.", weights_of(source)) | under(
        "ema.module.", weights_of(source, "ema")
    )
    betas = {"betas": linear(num_steps=60).betas.float(), "alphas_cumprod": torch.ones(60)}
    half = {n: v.half() for n, v in {**state, **betas}.items()}
    torch.save({"state_dict": half, **LIGHTNING}, tmp_path / "last.ckpt")
    objective = {"objective": {"_target_": "ddpm.diffusion.PredNoise"}}
    path, kwargs = str(tmp_path / "last.ckpt"), NAMED.get(source, {})
    imported = read_checkpoint(source, path, None, None, None, kwargs, objective)
    for which, seed in ((imported.raw, ""), (imported.ema, "ema")):
        expected = {
            SOURCES[source].map_from(name): value
            for name, value in weights_of(source, seed).items()
        }
        expected.pop("", None)
        assert which.keys() == expected.keys()
        for name, value in which.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, expected[name].half().float())
    assert (imported.averaged, imported.types) == ("both", ["float16"])
    assert imported.step == 120
    expected = {"_target_": "ddpm.diffusion.linear", "num_steps": 60}
    assert imported.process.schedule == expected


def test_unused_entries_are_reported():
    content = WRAPPINGS["a trainer"][0](weights_of("simple-unet"), weights_of("simple-unet", "ema"))
    parts = unwrap(content, "simple-unet", SOURCES["simple-unet"].anchors)
    assert (parts.step, parts.version) == (120, "1.8.14")
    assert parts.ignored == [
        "opt", "scaler", "ema.initted", "ema.step",
        "a second copy of the weights (ema.online_model.model.)",
        "4 tables of the noise schedule",
    ]  # fmt: skip
    parts = unwrap({"model": weights_of("simple-unet"), **EXTRAS}, "simple-unet",
                   SOURCES["simple-unet"].anchors)  # fmt: skip
    assert parts.ignored == [
        "epoch", "loss", "losses", "best_loss", "args", "optimizer", "lr_scheduler", "scaler",
        "rng_state", "num_batches_tracked",
    ]  # fmt: skip


def with_another(state):
    changed = dict(state)
    changed["outc.bias"] = state["outc.bias"] + 1
    return changed


def cyclic(state):
    inside = {"a": 1}
    inside["again"] = inside
    return {"note": inside, "vae": {"w": torch.ones(2, 2)}, "net": state}


REFUSED = {
    "two networks": (
        lambda a: {"model": a, "net": with_another(a)},
        "contains several different networks of simple-unet (under 'model.' and 'net.'); save "
        "one of them alone, with torch.save(network.state_dict(), ...)",
    ),
    "two averages": (
        lambda a: {"model": a, "ema_0.99": dict(a), "ema_0.9999": with_another(a)},
        "contains several different networks of simple-unet (under 'ema_0.99.' and 'ema_0.9999.'); "
        "save one of them alone, with torch.save(network.state_dict(), ...)",
    ),
    "twice with and without module": (
        lambda a: {**a, **under("module.", with_another(a))},
        "contains outc.bias twice with different values; save one network alone",
    ),
    "other networks beside it": (
        lambda a: {
            "net": a, "vae": {f"{n}.weight": torch.ones(2, 2) for n in range(5)},
            "lpips.lin": torch.ones(3),
        },
        "contains tensors beside the network of simple-unet that would be lost: vae.0.weight, "
        "vae.1.weight, vae.2.weight and 3 more; save the network's state dict alone, with "
        "torch.save(network.state_dict(), ...)",
    ),
    "a dictionary in itself": (
        cyclic,
        "contains tensors beside the network of simple-unet that would be lost: vae.w; save the "
        "network's state dict alone, with torch.save(network.state_dict(), ...)",
    ),
    "no tensors": (
        lambda a: {"epoch": 3}, "contains no weights, and so no network of simple-unet"
    ),
    "another network": (
        lambda a: {"model": {"encoder.weight": torch.ones(3)}}, "contains no network of simple-unet"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_ambiguous_or_additional_networks_are_rejected(case):
    content, problem = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        unwrap(content(weights_of("simple-unet")), "simple-unet", SOURCES["simple-unet"].anchors)
    assert str(caught.value) == f"file: {problem}"


def test_additional_parameters_are_rejected(tmp_path):
    for extra in ("lora.weight", "temperature"):
        shape = (2, 2) if extra == "lora.weight" else (1,)
        torch.save({**weights_of("simple-unet"), extra: torch.ones(shape)}, tmp_path / "net.pt")
        with pytest.raises(ConfigError) as caught:
            read_checkpoint("simple-unet", str(tmp_path / "net.pt"), None, None, None, {})
        assert str(caught.value) == (
            f"state_dict.{extra}=[{','.join(map(str, shape))}]: the network has "
            "no such parameter; set network.<argument>=... to those of its training, or save "
            "the state dict of the network alone"
        )


def test_values_that_are_not_finite_are_counted():
    state = {"a": torch.ones(2, 3), "b": torch.ones(4), "c": torch.ones(2, dtype=torch.bfloat16)}
    weights, types = plain(state, "raw", "file", "x.pt")
    assert types == ["bfloat16"] and all(value.dtype == torch.float32 for value in weights.values())
    state["a"][0, 1:] = float("nan")
    state["b"][0] = float("inf")
    with pytest.raises(ConfigError) as caught:
        plain(state, "raw", "file", "x.pt")
    assert str(caught.value) == (
        "file=x.pt: its raw weights contain NaN or infinite values: 2 of 6 in a and in 1 "
        "more tensors; use a checkpoint that was saved before the training diverged"
    )
    with pytest.raises(ConfigError, match="d is int8, not floating point; save the weights as"):
        plain({"d": torch.ones(2).to(torch.int8)}, "raw", "file", "x.pt")


def test_harmless_values_beside_the_weights_can_be_read(tmp_path):
    import argparse
    from pathlib import Path

    import numpy as np

    notes = {"args": argparse.Namespace(lr=1), "loss": np.float64(0.5), "at": Path("a"),
             "n": np.int64(3), "w": torch.ones(2)}  # fmt: skip
    for zipped in (True, False):
        torch.save(notes, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        content = read(str(tmp_path / "a.pt"))
        assert (content["args"].lr, content["loss"], content["n"]) == (1, 0.5, 3)


def test_file_format_is_detected_from_the_content(tmp_path):
    import safetensors.torch

    state = weights_of("simple-unet")
    safetensors.torch.save_file(state, tmp_path / "net.bin")
    torch.save(state, tmp_path / "net.safetensors")
    for name in ("net.bin", "net.safetensors"):
        assert same(read(str(tmp_path / name)), state)


def test_names_of_another_system_are_recognised(tmp_path):
    torch.save({"model": weights_of("denoising-diffusion-pytorch-1d")}, tmp_path / "net.pt")
    with pytest.raises(ConfigError) as caught:
        read_checkpoint(
            "denoising-diffusion-pytorch", str(tmp_path / "net.pt"), None, None, None, {}
        )
    assert str(caught.value) == (
        f"file={tmp_path / 'net.pt'}: contains no network of denoising-diffusion-pytorch; its "
        "names are those of another system: set source=denoising-diffusion-pytorch-1d"
    )
