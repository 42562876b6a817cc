"""Files of the trainers of denoising-diffusion-pytorch, and the process in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm.diffusion import (
    GaussianDiffusion,
    Objective,
    PredNoise,
    PredV,
    PredX0,
    Schedule,
)
from ddpm.errors import ConfigError, require
from ddpm.interop.files import Parts
from ddpm.interop.foreign_format import Export
from ddpm.interop.lucidrains_versions import MARK, Number, Versions, parse
from ddpm.interop.process import SCHEDULES, Node, Process, node, objective, schedule_with

_OBJECTIVES: dict[str, type[Objective]] = {
    "pred_noise": PredNoise,
    "pred_x0": PredX0,
    "pred_v": PredV,
}


def process(versions: Versions, kwargs: dict[str, Any], parts: Parts) -> Process:
    """Return the process in a file; the defaults of its version replace missing entries.

    Raises:
        ConfigError: (key ``schedule`` or ``objective``) tables without an equivalent.
    """
    form = versions.resolve(kwargs["version"], parts.raw)
    number = form.number if kwargs["version"] is None else parse(kwargs["version"])
    tables = parts.buffers or {}
    schedule, schedule_node = _schedule(versions, tables.get("betas"))
    channels, outputs = kwargs["channels"], kwargs["out_dim"]
    learned = kwargs["learned_variance"] if outputs is None else outputs == 2 * channels
    shared = {"self_condition": kwargs["self_condition"]}
    if learned:  # `LearnedGaussianDiffusion`: predicts the noise; one term of the bound at 0.001
        weight = 0.001 / schedule.num_steps
        diffusion = node(
            "GaussianDiffusion",
            variance="learned_range",
            loss="hybrid",
            vlb_weight=weight,
            **shared,
        )
        return Process(schedule_node, objective("pred_noise"), diffusion)
    options = _objective(versions, number, schedule, tables)
    loss = "l2" if number >= (1, 6, 3) else "l1"
    diffusion = node("GaussianDiffusion", variance="fixed_small", **shared)
    return Process(schedule_node, objective(loss=loss, **options), diffusion)


def _schedule(versions: Versions, betas: Tensor | None) -> tuple[Schedule, Node]:
    """Return the schedule with these betas and its node; without betas the version's default."""
    if betas is None:
        name = versions.schedule
        return SCHEDULES[name](num_steps=1000), node(name, num_steps=1000)
    return schedule_with(betas, {name: {} for name in SCHEDULES})


def _objective(
    versions: Versions, number: Number, schedule: Schedule, tables: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the arguments of the objective's node, its name among them."""
    old = tables.get("p2_loss_weight")
    if old is not None:
        problem = "the file weights its loss by p2_loss_weight_gamma; add objective=..."
        require(bool((old - 1).abs().max() < 1e-6), "objective", None, problem)
        return {"name": "pred_noise"}  # the default; the table is the same for all objectives
    weight = tables.get("loss_weight")
    if weight is None:
        present = versions.schedule == "sigmoid" and number >= (1, 6, 3)
        return {"name": "pred_v", "weighting": "noise"} if present else {"name": "pred_noise"}
    snr, close = schedule.snr(torch.arange(schedule.num_steps)), 1e-4
    if weight.dtype != torch.float32:  # a file in half precision
        close = max(close, 2 * torch.finfo(weight.dtype).eps)
    weight = weight.double()
    for name, kind in _OBJECTIVES.items():
        each = kind()
        reached = float((weight / each.noise_weight(snr, torch.ones_like(snr))).max())
        for gamma in (None, float(f"{reached:.4g}")):
            capped = snr if gamma is None else snr.clamp(max=gamma)
            if torch.allclose(weight, each.noise_weight(snr, capped), rtol=close, atol=0):
                return {"name": name, "weighting": "noise", "min_snr_gamma": gamma}
    problem = "the file's loss weights are not those of noise, x0 or v; add objective=..."
    raise ConfigError("objective", None, problem)


def join(versions: Versions, wrap: Callable[[str], str] | None, export: Export) -> dict[str, Any]:
    """Return the content that ``Trainer.load`` loads: weights, average, tables, and a new Adam.

    ``wrap`` renames parameters for the versions with wrapped attention, unless all have it.
    """
    process = export.diffusion
    problem = "is not supported by the original, which divides by the signal of every step"
    require(not process.schedule.zero_terminal_snr, "schedule.zero_terminal_snr", True, problem)
    problem = "is not supported by the original, whose network receives t unscaled"
    good = not process.rescale_timesteps or process.num_steps == 1000
    require(good, "diffusion.rescale_timesteps", True, problem)
    form = versions.resolve(None, export.weights[export.which])
    version = form.typical if export.version is None else export.version
    problem = f"does not have this network, which is of {form.range}"
    require(versions.at(version) is form, "version", version, problem)
    rename = wrap if form.wrapped and wrap is not None else str
    tables = _tables(process, parse(version) >= versions.plain_weight)
    models = {
        which: {**tables, **_named(weights, rename)} for which, weights in export.weights.items()
    }
    raw = models["raw"]
    weights = [value for name, value in raw.items() if name.startswith("model.")]
    return {
        "step": export.step,
        "model": raw,
        "opt": torch.optim.Adam(weights, lr=1e-4, betas=(0.9, 0.99)).state_dict(),
        "ema": {
            "initted": torch.tensor(True),
            "step": torch.tensor(export.step),
            **{f"online_model.{name}": value for name, value in raw.items()},
            **{f"ema_model.{name}": value for name, value in models["ema"].items()},
        },
        "scaler": None,
        "version": version,
    }


def _named(weights: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Return weights with the names of a network inside the process."""
    return {f"model.{rename(name)}": value for name, value in weights.items() if name != MARK}


def _tables(diffusion: GaussianDiffusion, plain: bool) -> dict[str, Tensor]:
    """Return the tables of the original's ``GaussianDiffusion``, in its order.

    The loss weights are the original's for the objective, which they identify, even if ours are
    uniform.
    """
    schedule = diffusion.schedule
    betas, now = schedule.betas, schedule.alpha_bar
    before = torch.cat([torch.ones(1, dtype=now.dtype), now[:-1]])
    variance = betas * (1 - before) / (1 - now)
    snr, gamma = now / (1 - now), diffusion.objective.min_snr_gamma
    capped = snr if gamma is None else snr.clamp(max=gamma)
    tables = {
        "betas": betas,
        "alphas_cumprod": now,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": now.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - now).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - now).log(),
        "sqrt_recip_alphas_cumprod": (1 / now).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / now - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - now),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - now),
        "loss_weight" if plain else "p2_loss_weight": diffusion.objective.noise_weight(snr, capped)
        if plain
        else torch.ones_like(snr),
    }
    return {name: table.float() for name, table in tables.items()}
