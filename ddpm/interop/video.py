"""Networks and checkpoints of video-diffusion-pytorch and of DiffPhyCon, which grew out of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.errors import ConfigError, require
from ddpm.interop.files import Parts
from ddpm.interop.original import (
    REQUIRED,
    Arguments,
    Described,
    Original,
    Weights,
    smallest_size,
)
from ddpm.interop.process import SCHEDULES, Node, Process, node, objective, schedule_with
from ddpm.models.unet3d import UNet3D
from ddpm.models.unet3d_attention import TemporalAttention

_BERT_DIM = 768  # the width of the text embeddings that `use_bert_text_cond` stands for

# `resnet_groups` is 0.6.0's; 0.7.0 took it away. `block_type` has no effect in either.
_VIDEO: Arguments = {
    "dim": REQUIRED,
    "cond_dim": None,
    "out_dim": None,
    "dim_mults": (1, 2, 4, 8),
    "channels": 3,
    "attn_heads": 8,
    "attn_dim_head": 32,
    "use_bert_text_cond": False,
    "init_dim": None,
    "init_kernel_size": 7,
    "use_sparse_linear_attn": True,
    "block_type": "resnet",
    "resnet_groups": 8,
}
_DIFFPHYCON: Arguments = {**_VIDEO, "channels": 6, "attn_heads": 4}

_ATTENTION = re.compile(
    r"(?P<where>init_temporal_attn|mid_\w+_attn|(?:downs|ups)\.\d+\.(?P<part>[23]))\.(?P<what>.+)"
)


def _video(given: Arguments, weights: Weights) -> Described:
    """``Unet3D``, whose versions differ in the norm of the blocks, which the weights show."""
    old = "mid_block1.block1.norm.weight" in weights
    return _describe(given, conv="factorised", block_norm="group" if old else "rms")


def _diffphycon(given: Arguments, weights: Weights) -> Described:
    """``Unet3D_with_Conv3D``."""
    return _describe(given, conv="full", block_norm="group")


def _describe(given: Arguments, *, conv: str, block_norm: str) -> Described:
    """The network of either; the first attention along time never focuses on the present there."""
    names = [
        "dim",
        "init_dim",
        "dim_mults",
        "init_kernel_size",
        "resnet_groups",
        "attn_heads",
        "attn_dim_head",
        "use_sparse_linear_attn",
    ]
    channels, out_channels = given["channels"], given["out_dim"]
    return Described(
        UNet3D,
        channels,
        channels if out_channels is None else out_channels,
        (1, *smallest_size(len(given["dim_mults"]), 2)),
        None,
        False,
        {
            **{name: given[name] for name in names},
            "conv": conv,
            "block_norm": block_norm,
            "cond_dim": _BERT_DIM if given["use_bert_text_cond"] else given["cond_dim"],
            "focus_init": False,
        },
    )


def _infer(weights: Weights) -> dict[str, Any]:
    """All but ``resnet_groups``, which leaves no trace in names and shapes."""
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    found: dict[str, Any] = {}
    if "init_conv.weight" in shapes:
        found["init_dim"], found["channels"], *_, found["init_kernel_size"] = shapes[
            "init_conv.weight"
        ]
        found["use_sparse_linear_attn"] = "downs.0.2.fn.fn.to_qkv.weight" in shapes
    if "final_conv.1.weight" in shapes:
        found["out_dim"] = shapes["final_conv.1.weight"][0]
    if "init_conv.weight" in shapes:
        found["cond_dim"] = None
    if "null_cond_emb" in shapes:
        found["cond_dim"] = shapes["null_cond_emb"][1]
    heads = shapes.get("time_rel_pos_bias.relative_attention_bias.weight")
    qkv = shapes.get("init_temporal_attn.fn.fn.fn.to_qkv.weight")
    if heads is not None and qkv is not None:
        found["attn_heads"], found["attn_dim_head"] = heads[1], qkv[0] // (3 * heads[1])
    if "time_mlp.1.weight" in shapes:
        dim = found["dim"] = shapes["time_mlp.1.weight"][1]
        found["dim_mults"] = tuple(width // dim for width in _level_widths(shapes))
    return found


def _level_widths(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """The channels of each level."""
    widths: list[int] = []
    while (name := f"downs.{len(widths)}.1.block1.proj.weight") in shapes:
        widths.append(shapes[name][0])
    return widths


def _ours(name: str) -> str:
    """Attention without its wrappers, and without the rotary frequencies that we compute."""
    if name.endswith("rotary_emb.freqs"):
        return ""
    attention = _ATTENTION.fullmatch(name)
    if attention is None:
        return name
    return f"{attention['where']}.{re.sub(r'^(fn[.])+', '', attention['what'])}"


def _theirs(name: str) -> str:
    """Attention in ``Residual(PreNorm(...))``, and in one more wrapper unless it is linear."""
    attention = _ATTENTION.fullmatch(name)
    if attention is None:
        return name
    norm, linear = attention["what"].startswith("norm."), attention["part"] == "2"
    depth = 1 if norm else 2 if linear else 3
    return f"{attention['where']}.{'fn.' * depth}{attention['what']}"


def _fixed_entries(network: nn.Module) -> dict[str, Tensor]:
    """What the originals' state dicts hold besides our parameters, by their names.

    That is the frequencies of the rotary embedding, once for every attention along time.
    """
    assert isinstance(network, UNet3D)
    return {
        f"{name}.fn.fn.fn.rotary_emb.freqs": network.rotary_emb.freqs.detach().clone()
        for name, module in network.named_modules()
        if isinstance(module, TemporalAttention)
    }


class VideoNetwork(nn.Module):
    """Our network, called as the originals are: ``net(x, time, cond, null_cond_prob, ...)``.

    With ``frames_first`` x and the answer are ``(B, F, C, H, W)``, else ``(B, C, F, H, W)``.
    Unlike in the originals a network that takes conditions need not be given any.
    """

    def __init__(self, network: nn.Module, *, frames_first: bool) -> None:
        super().__init__()
        assert isinstance(network, UNet3D)
        self.network, self.frames_first = network, frames_first

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        cond: Tensor | None = None,
        null_cond_prob: float = 0.0,
        focus_present_mask: Tensor | None = None,
        prob_focus_present: float = 0.0,
    ) -> Tensor:
        """Predict in the shape of x; the probabilities are of each sample, in any mode."""
        focus = self._focus(x, focus_present_mask, prob_focus_present)
        null_cond = None if cond is None else _draw(x, null_cond_prob)
        answer = self.network(
            self._swap(x), time, cond=cond, null_cond=null_cond, focus_present_mask=focus
        )
        return self._swap(answer)

    def forward_with_cond_scale(
        self,
        x: Tensor,
        time: Tensor,
        cond: Tensor | None = None,
        cond_scale: float = 2.0,
        focus_present_mask: Tensor | None = None,
        prob_focus_present: float = 0.0,
    ) -> Tensor:
        """The answer to ``cond``, led away from that to none; one call on twice the batch."""
        focus = self._focus(x, focus_present_mask, prob_focus_present)
        answer = self.network.forward_with_cond_scale(
            self._swap(x), time, cond=cond, cond_scale=cond_scale, focus_present_mask=focus
        )
        return self._swap(answer)

    def _swap(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.frames_first else x

    def _focus(self, x: Tensor, mask: Tensor | None, probability: float) -> Tensor | None:
        """The samples that focus: those said, else so many of them."""
        if mask is not None or probability == 0:
            return mask
        return _draw(x, probability)


def _draw(x: Tensor, probability: float) -> Tensor:
    """``(B,)``, true with that probability; certainties draw no random numbers."""
    if probability in (0, 1):
        return torch.full((len(x),), probability == 1, device=x.device)
    return torch.rand(len(x), device=x.device) < probability


def _express(conv: str, described: Described) -> dict[str, Any]:
    """The arguments of the original's constructor for a network of ours."""
    options = dict(described.options)
    if described.target is not UNet3D or options.pop("conv") != conv:
        problem = f"has no such network; it takes those of model=unet3d model.conv={conv}"
        raise ConfigError("format", None, problem)
    focuses = options["prob_focus_present"] > 0  # else it has no effect
    lacking = (
        ("num_classes", described.num_classes, None),
        ("diffusion.self_condition", described.self_condition, False),
        ("model.focus_init", options.pop("focus_init") and focuses, False),
    )
    for key, value, theirs in lacking:
        problem = "is not in the original; such a network cannot be written for it"
        require(value == theirs, key, value, problem)
    for name in ("block_norm", "null_cond_prob", "prob_focus_present"):
        options.pop(name)
    return {"channels": described.channels, "out_dim": described.out_channels, **options}


def _schedule(parts: Parts, usual: str, options: dict[str, Any]) -> Node:
    """The schedule of the tables in a file, or the usual one with its options."""
    betas = (parts.buffers or {}).get("betas")
    if betas is None:
        return node(usual, num_steps=1000, **options)
    others: dict[str, dict[str, Any]] = {name: {} for name in SCHEDULES if name != usual}
    return schedule_with(betas, {usual: options, **others})[1]


def _video_process(kwargs: dict[str, Any], parts: Parts) -> Process:
    """The cosine schedule with its own cap of the betas; the loss is not in the file."""
    schedule = _schedule(parts, "cosine", {"max_beta": 0.9999})
    return Process(schedule, objective("pred_noise", loss="l1"))


def _diffphycon_process(kwargs: dict[str, Any], parts: Parts) -> Process:
    """The sigmoid schedule; its scripts take the square error of the noise."""
    weights = (parts.buffers or {}).get("loss_weight")
    if weights is not None and bool((weights - 1).abs().max() > 1e-6):
        problem = "the file's loss weights are not those of a predicted noise; add objective=..."
        raise ConfigError("objective", None, problem)
    return Process(_schedule(parts, "sigmoid", {}), objective("pred_noise"))


ORIGINALS = {
    "video-diffusion-pytorch": Original(
        defaults=_VIDEO,
        describe=_video,
        infer=_infer,
        ours=_ours,
        theirs=_theirs,
        adapt=partial(VideoNetwork, frames_first=False),
        express=partial(_express, "factorised"),
        anchors={"init_conv.weight": (5,)},
        process=_video_process,
        extra=_fixed_entries,
    ),
    "diffphycon": Original(
        defaults=_DIFFPHYCON,
        describe=_diffphycon,
        infer=_infer,
        ours=_ours,
        theirs=_theirs,
        adapt=partial(VideoNetwork, frames_first=True),
        express=partial(_express, "full"),
        anchors={"init_conv.weight": (5,)},
        process=_diffphycon_process,
        extra=_fixed_entries,
        values=(-1.0, 1.0),
    ),
}
