"""Files that the trainers of denoising-diffusion-pytorch write, and the process in them."""

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
from ddpm.interop.lucidrains_versions import MARK, Number, Versions, parse
from ddpm.interop.original import Export
from ddpm.interop.process import SCHEDULES, Node, Process, node, objective, schedule_with

_OBJECTIVES: dict[str, type[Objective]] = {
    "pred_noise": PredNoise,
    "pred_x0": PredX0,
    "pred_v": PredV,
}


def process(versions: Versions, kwargs: dict[str, Any], parts: Parts) -> Process:
    """The process in a file, with the defaults of its version for what is not there.

    Raises ConfigError (key ``schedule`` or ``objective``) for tables that are none of ours.
    """
    form = versions.settle(kwargs["version"], parts.raw)
    number = form.number if kwargs["version"] is None else parse(kwargs["version"])
    tables = parts.buffers or {}
    schedule, told_schedule = _schedule(versions, tables.get("betas"))
    channels, answers = kwargs["channels"], kwargs["out_dim"]
    learned = kwargs["learned_variance"] if answers is None else answers == 2 * channels
    same = {"self_condition": kwargs["self_condition"]}
    if learned:  # `LearnedGaussianDiffusion`: of the noise alone, one term of the bound at 0.001
        weight = 0.001 / schedule.num_steps
        told = node(
            "GaussianDiffusion", variance="learned_range", loss="hybrid", vlb_weight=weight, **same
        )
        return Process(told_schedule, objective("pred_noise"), told)
    what = _objective(versions, number, schedule, tables)
    loss = "l2" if number >= (1, 6, 3) else "l1"
    diffusion = node("GaussianDiffusion", variance="fixed_small", **same)
    return Process(told_schedule, objective(loss=loss, **what), diffusion)


def _schedule(versions: Versions, betas: Tensor | None) -> tuple[Schedule, Node]:
    """The schedule with these betas, and its node; the version's default where there are none."""
    if betas is None:
        name = versions.schedule
        return SCHEDULES[name](num_steps=1000), node(name, num_steps=1000)
    return schedule_with(betas, {name: {} for name in SCHEDULES})


def _objective(
    versions: Versions, number: Number, schedule: Schedule, tables: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What is predicted, and how steps are weighted, as arguments of an objective's node."""
    old = tables.get("p2_loss_weight")
    if old is not None:
        problem = "the file's steps are weighted by p2_loss_weight_gamma; add objective=..."
        require(bool((old - 1).abs().max() < 1e-6), "objective", None, problem)
        return {"name": "pred_noise"}  # the default; the table is the same for all three
    found = tables.get("loss_weight")
    if found is None:
        present = versions.schedule == "sigmoid" and number >= (1, 6, 3)
        return {"name": "pred_v", "weighting": "noise"} if present else {"name": "pred_noise"}
    snr, close = schedule.snr(torch.arange(schedule.num_steps)), 1e-4
    if found.dtype != torch.float32:  # a file of half precision
        close = max(close, 2 * torch.finfo(found.dtype).eps)
    found = found.double()
    for name, kind in _OBJECTIVES.items():
        each = kind()
        reached = float((found / each.noise_weight(snr, torch.ones_like(snr))).max())
        for gamma in (None, float(f"{reached:.4g}")):
            capped = snr if gamma is None else snr.clamp(max=gamma)
            if torch.allclose(found, each.noise_weight(snr, capped), rtol=close, atol=0):
                return {"name": name, "weighting": "noise", "min_snr_gamma": gamma}
    problem = "the file's loss weights are not those of noise, x0 or v; add objective=..."
    raise ConfigError("objective", None, problem)


def join(versions: Versions, wrap: Callable[[str], str] | None, export: Export) -> dict[str, Any]:
    """What ``Trainer.load`` loads: raw and averaged weights, tables, a new Adam.

    ``wrap`` names parameters as versions with wrapped attention do, where not all have it.
    """
    told = export.diffusion
    problem = "the original divides by the signal of every step; it cannot be written for it"
    ends = told.schedule.zero_terminal_snr
    require(not ends, "schedule.zero_terminal_snr", True, problem)
    problem = "the original tells its network t as it is; such a run cannot be written for it"
    good = not told.rescale_timesteps or told.num_steps == 1000
    require(good, "diffusion.rescale_timesteps", True, problem)
    form = versions.settle(None, export.weights[export.which])
    version = form.typical if export.version is None else export.version
    problem = f"has other networks than this one, which is of {form.range}"
    require(versions.at(version) is form, "version", version, problem)
    rename = wrap if form.wrapped and wrap is not None else str
    tables = _tables(told, parse(version) >= versions.plain_weight)
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
    """The network inside the process."""
    return {f"model.{rename(name)}": value for name, value in weights.items() if name != MARK}


def _tables(diffusion: GaussianDiffusion, plain: bool) -> dict[str, Tensor]:
    """The tables of a ``GaussianDiffusion`` there, in its order.

    The weights of the loss are the original's for the objective, which they are known by, also
    where ours are uniform.
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
