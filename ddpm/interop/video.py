"""Networks and checkpoints of video-diffusion-pytorch and of DiffPhyCon, which is based on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.errors import ConfigError, require
from ddpm.interop.files import Parts
from ddpm.interop.foreign_format import (
    REQUIRED,
    Arguments,
    ForeignFormat,
    NetworkSpec,
    Weights,
    smallest_size,
)
from ddpm.interop.process import SCHEDULES, Node, Process, node, objective, schedule_with
from ddpm.models.unet3d import UNet3D
from ddpm.models.unet3d_attention import TemporalAttention

_BERT_DIM = 768  # width of the text embeddings of `use_bert_text_cond`

# `resnet_groups` exists in 0.6.0 and not in 0.7.0. `block_type` has no effect in either.
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


def _video(kwargs: Arguments, weights: Weights) -> NetworkSpec:
    """Return ``Unet3D``; the norm of its blocks, which depends on the version, is inferred."""
    old = "mid_block1.block1.norm.weight" in weights
    return _from_kwargs(kwargs, conv="factorised", block_norm="group" if old else "rms")


def _diffphycon(kwargs: Arguments, weights: Weights) -> NetworkSpec:
    """Return ``Unet3D_with_Conv3D``."""
    return _from_kwargs(kwargs, conv="full", block_norm="group")


def _from_kwargs(kwargs: Arguments, *, conv: str, block_norm: str) -> NetworkSpec:
    """Return the network of either, whose first temporal attention never focuses on the present."""
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
    channels, out_channels = kwargs["channels"], kwargs["out_dim"]
    return NetworkSpec(
        UNet3D,
        channels,
        channels if out_channels is None else out_channels,
        (1, *smallest_size(len(kwargs["dim_mults"]), 2)),
        None,
        False,
        {
            **{name: kwargs[name] for name in names},
            "conv": conv,
            "block_norm": block_norm,
            "cond_dim": _BERT_DIM if kwargs["use_bert_text_cond"] else kwargs["cond_dim"],
            "focus_init": False,
        },
    )


def _infer(weights: Weights) -> dict[str, Any]:
    """Return all arguments except ``resnet_groups``."""
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    inferred: dict[str, Any] = {}
    if "init_conv.weight" in shapes:
        inferred["init_dim"], inferred["channels"], *_, inferred["init_kernel_size"] = shapes[
            "init_conv.weight"
        ]
        inferred["use_sparse_linear_attn"] = "downs.0.2.fn.fn.to_qkv.weight" in shapes
    if "final_conv.1.weight" in shapes:
        inferred["out_dim"] = shapes["final_conv.1.weight"][0]
    if "init_conv.weight" in shapes:
        inferred["cond_dim"] = None
    if "null_cond_emb" in shapes:
        inferred["cond_dim"] = shapes["null_cond_emb"][1]
    heads = shapes.get("time_rel_pos_bias.relative_attention_bias.weight")
    qkv = shapes.get("init_temporal_attn.fn.fn.fn.to_qkv.weight")
    if heads is not None and qkv is not None:
        inferred["attn_heads"], inferred["attn_dim_head"] = heads[1], qkv[0] // (3 * heads[1])
    if "time_mlp.1.weight" in shapes:
        dim = inferred["dim"] = shapes["time_mlp.1.weight"][1]
        inferred["dim_mults"] = tuple(width // dim for width in _level_widths(shapes))
    return inferred


def _level_widths(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Return the number of channels of each level."""
    widths: list[int] = []
    while (name := f"downs.{len(widths)}.1.block1.proj.weight") in shapes:
        widths.append(shapes[name][0])
    return widths


def _map_from(name: str) -> str:
    """Return our name: attention without its wrappers and without the rotary frequencies."""
    if name.endswith("rotary_emb.freqs"):
        return ""
    attention = _ATTENTION.fullmatch(name)
    if attention is None:
        return name
    return f"{attention['where']}.{re.sub(r'^(fn[.])+', '', attention['what'])}"


def _map_to(name: str) -> str:
    """Return the original's name: attention in ``Residual(PreNorm(...))``, and one more wrapper."""
    attention = _ATTENTION.fullmatch(name)
    if attention is None:
        return name
    norm, linear = attention["what"].startswith("norm."), attention["part"] == "2"
    depth = 1 if norm else 2 if linear else 3
    return f"{attention['where']}.{'fn.' * depth}{attention['what']}"


def _fixed_entries(network: nn.Module) -> dict[str, Tensor]:
    """Return the entries of the originals' state dicts that are not among our parameters.

    These are the frequencies of the rotary embedding, once per temporal attention.
    """
    assert isinstance(network, UNet3D)
    return {
        f"{name}.fn.fn.fn.rotary_emb.freqs": network.rotary_emb.freqs.detach().clone()
        for name, module in network.named_modules()
        if isinstance(module, TemporalAttention)
    }


class VideoNetwork(nn.Module):
    """Our network with the call of the originals: ``net(x, time, cond, null_cond_prob, ...)``.

    In contrast to the originals, conditions are optional.

    Args:
        network: a :class:`UNet3D`.
        frames_first: True for x and output of shape (B, F, C, H, W), else (B, C, F, H, W).
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
        """Return the output, shaped as x.

        Args:
            x: (B, F, C, H, W) or (B, C, F, H, W).
            time: (B,) timesteps.
            cond: (B, cond_dim) conditions.
            null_cond_prob: probability per sample that its condition is dropped.
            focus_present_mask: (B,) bool, samples whose temporal attention is limited to the
                present frame.
            prob_focus_present: probability per sample of such a limit, without a mask.
        """
        focus = self._focus(x, focus_present_mask, prob_focus_present)
        null_cond = None if cond is None else _draw(x, null_cond_prob)
        output = self.network(
            self._swap(x), time, cond=cond, null_cond=null_cond, focus_present_mask=focus
        )
        return self._swap(output)

    def forward_with_cond_scale(
        self,
        x: Tensor,
        time: Tensor,
        cond: Tensor | None = None,
        cond_scale: float = 2.0,
        focus_present_mask: Tensor | None = None,
        prob_focus_present: float = 0.0,
    ) -> Tensor:
        """Return the output with classifier-free guidance of scale ``cond_scale``.

        The network is called once with a doubled batch; see :meth:`forward` for the arguments.
        """
        focus = self._focus(x, focus_present_mask, prob_focus_present)
        output = self.network.forward_with_cond_scale(
            self._swap(x), time, cond=cond, cond_scale=cond_scale, focus_present_mask=focus
        )
        return self._swap(output)

    def _swap(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.frames_first else x

    def _focus(self, x: Tensor, mask: Tensor | None, probability: float) -> Tensor | None:
        """Return the mask of the samples that focus on the present, drawn if it is None."""
        if mask is not None or probability == 0:
            return mask
        return _draw(x, probability)


def _draw(x: Tensor, probability: float) -> Tensor:
    """Return a bool mask (B,) of a probability; 0 and 1 use no random numbers."""
    if probability in (0, 1):
        return torch.full((len(x),), probability == 1, device=x.device)
    return torch.rand(len(x), device=x.device) < probability


def _to_kwargs(conv: str, spec: NetworkSpec) -> dict[str, Any]:
    """Return the arguments of the original's constructor for our network."""
    options = dict(spec.options)
    if spec.target is not UNet3D or options.pop("conv") != conv:
        problem = f"supports networks of model=unet3d model.conv={conv} only"
        raise ConfigError("format", None, problem)
    focuses = options["prob_focus_present"] > 0  # otherwise focus_init has no effect
    unsupported = (
        ("num_classes", spec.num_classes, None),
        ("diffusion.self_condition", spec.self_condition, False),
        ("model.focus_init", options.pop("focus_init") and focuses, False),
    )
    for key, value, fixed in unsupported:
        problem = "is not supported by the original"
        require(value == fixed, key, value, problem)
    for name in ("block_norm", "null_cond_prob", "prob_focus_present"):
        options.pop(name)
    return {"channels": spec.channels, "out_dim": spec.out_channels, **options}


def _schedule(parts: Parts, default: str, options: dict[str, Any]) -> Node:
    """Return the schedule of the tables in a file, or the default one."""
    betas = (parts.buffers or {}).get("betas")
    if betas is None:
        return node(default, num_steps=1000, **options)
    others: dict[str, dict[str, Any]] = {name: {} for name in SCHEDULES if name != default}
    return schedule_with(betas, {default: options, **others})[1]


def _video_process(kwargs: dict[str, Any], parts: Parts) -> Process:
    """Return the cosine schedule with the original's limit of the betas, and its default loss."""
    schedule = _schedule(parts, "cosine", {"max_beta": 0.9999})
    return Process(schedule, objective("pred_noise", loss="l1"))


def _diffphycon_process(kwargs: dict[str, Any], parts: Parts) -> Process:
    """Return the sigmoid schedule with the squared error of the noise, as in the scripts."""
    weights = (parts.buffers or {}).get("loss_weight")
    if weights is not None and bool((weights - 1).abs().max() > 1e-6):
        problem = "the file's loss weights are not those of a predicted noise; add objective=..."
        raise ConfigError("objective", None, problem)
    return Process(_schedule(parts, "sigmoid", {}), objective("pred_noise"))


FORMATS = {
    "video-diffusion-pytorch": ForeignFormat(
        defaults=_VIDEO,
        from_kwargs=_video,
        infer=_infer,
        map_from=_map_from,
        map_to=_map_to,
        adapt=partial(VideoNetwork, frames_first=False),
        to_kwargs=partial(_to_kwargs, "factorised"),
        anchors={"init_conv.weight": (5,)},
        process=_video_process,
        extra=_fixed_entries,
    ),
    "diffphycon": ForeignFormat(
        defaults=_DIFFPHYCON,
        from_kwargs=_diffphycon,
        infer=_infer,
        map_from=_map_from,
        map_to=_map_to,
        adapt=partial(VideoNetwork, frames_first=True),
        to_kwargs=partial(_to_kwargs, "full"),
        anchors={"init_conv.weight": (5,)},
        process=_diffphycon_process,
        extra=_fixed_entries,
        values=(-1.0, 1.0),
    ),
}
