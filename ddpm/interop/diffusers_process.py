"""Schedulers of diffusers: their configs, and our equivalent processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, PredNoise, PredV, PredX0, Schedule, cosine, linear
from ddpm.diffusion.schedules import MAX_BETA, betas_from_alpha_bar
from ddpm.errors import ConfigError, require
from ddpm.interop.process import Node, Process, node, objective, timesteps

_STEPS = 1000
_OBJECTIVES = {
    "epsilon": ("pred_noise", PredNoise),
    "sample": ("pred_x0", PredX0),
    "v_prediction": ("pred_v", PredV),
}
_SCHEDULERS = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDPM DDPMParallel DDIM DDIMParallel DDIMInverse PNDM LMSDiscrete EulerDiscrete "
        "EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete "
        "DPMSolverMultistep DPMSolverMultistepInverse DPMSolverSinglestep DPMSolverSDE "
        "DEISMultistep UniPCMultistep SASolver"
    ).split()
)
_VARIANCES = {
    None: "fixed_small",
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
}


@dataclass(frozen=True)
class ImportedProcess:
    """A process of diffusers.

    Attributes:
        process: its config nodes.
        notes: options of sampling that reproduce the scheduler, as sentences.
    """

    process: Process
    notes: list[str]


def process_of(
    config: Mapping[str, Any] | None,
    channels: int,
    out_channels: int,
    overrides: Mapping[str, Node],
) -> ImportedProcess:
    """Return the process of a scheduler's config.

    Args:
        config: content of ``scheduler_config.json``; None without that file.
        channels, out_channels: of the network.
        overrides: config nodes that replace those of the file, whose options are not read then.

    Raises:
        ConfigError: (key ``scheduler.<option>``) an option without an equivalent, with the reason;
            or the file and an override are missing.
    """
    if config is None:
        for key in ("schedule", "objective"):
            problem = (
                "cannot be determined: the folder has no scheduler_config.json; use the folder of "
                f"the whole pipeline, or add {key}=..."
            )
            require(key in overrides, key, None, problem)
        config = {}
    elif "schedule" not in overrides:
        check_scheduler(config)
    learned = out_channels == 2 * channels
    try:
        process = Process(
            overrides["schedule"] if "schedule" in overrides else schedule_of(config),
            overrides["objective"] if "objective" in overrides else _objective(config),
            overrides["diffusion"] if "diffusion" in overrides else _variance(config, learned),
            overrides.get("timesteps", timesteps("Uniform")),
        )
    except (TypeError, ValueError) as error:
        problem = "its scheduler_config.json has a value of a wrong type"
        raise ConfigError("scheduler", None, problem) from error
    return ImportedProcess(process, _clipping(config))


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a scheduler that has no table of betas."""
    name = config.get("_class_name", "DDPMScheduler")
    problem = (
        "is not a scheduler of a table of betas, which alone can be imported; use a pipeline with "
        "DDPMScheduler, or add schedule=... and objective=..."
    )
    require(name in _SCHEDULERS, "scheduler", name, problem)
    flow = config.get("use_flow_sigmas", False)
    problem = "the sigmas of flow matching cannot be imported; add schedule=... and objective=..."
    require(not flow, "scheduler.use_flow_sigmas", flow, problem)


def schedule_of(config: Mapping[str, Any]) -> Node:
    """Return the schedule of a scheduler's config.

    Raises:
        ConfigError: an unknown ``beta_schedule``.
    """
    zero = {"zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False))}
    if config.get("trained_betas") is not None:
        return node("table", betas=[float(beta) for beta in config["trained_betas"]], **zero)
    steps = int(config.get("num_train_timesteps", _STEPS))
    require(steps >= 1, "scheduler.num_train_timesteps", steps, "must be above 0")
    first, last = (
        float(config.get(name, default))
        for name, default in (("beta_start", 1e-4), ("beta_end", 0.02))
    )
    name = config.get("beta_schedule", "linear")
    if name == "linear" and steps > 1:
        scale = steps / _STEPS  # the schedule multiplies by 1000 / T
        return node(name, num_steps=steps, beta_start=first * scale, beta_end=last * scale, **zero)
    if name == "squaredcos_cap_v2":
        return node("cosine", num_steps=steps, **zero)
    return node("table", betas=_betas(name, steps, first, last).tolist(), **zero)


def _betas(name: str, steps: int, first: float, last: float) -> Tensor:
    """Return the betas (T,) float64 of a ``beta_schedule``."""
    if name == "linear":
        return torch.linspace(first, last, steps, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    if name == "sigmoid":
        curve = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
        return first + (last - first) * curve
    if name == "laplace":  # half of the log-SNR is a quantile of the Laplace distribution
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        tail = torch.log(1 - (1 - 2 * time).abs() + 1e-6)
        snr = torch.exp(torch.where(time <= 0.5, -tail, tail) / 2)
        return betas_from_alpha_bar((snr / (1 + snr)).sqrt(), MAX_BETA)
    problem = (
        "is not one of linear, scaled_linear, squaredcos_cap_v2, sigmoid and laplace; add "
        "schedule=..."
    )
    raise ConfigError("scheduler.beta_schedule", name, problem)


def _objective(config: Mapping[str, Any]) -> Node:
    """Return the objective; the first versions had ``predict_epsilon`` instead of its name."""
    old = "epsilon" if config.get("predict_epsilon", True) else "sample"
    name = config.get("prediction_type", old)
    problem = f"is not one of {', '.join(_OBJECTIVES)}; add objective=..."
    require(name in _OBJECTIVES, "scheduler.prediction_type", name, problem)
    return objective(_OBJECTIVES[name][0])


def _variance(config: Mapping[str, Any], learned: bool) -> Node:
    """Return the node of the process, with its variance."""
    name = config.get("variance_type")
    if learned:
        problem = (
            "the unet has two outputs per channel, as for variance_type=learned_range; add "
            "diffusion=iddpm"
        )
        require(name in (None, "learned_range"), "scheduler.variance_type", name, problem)
        return node("GaussianDiffusion", variance="learned_range", loss="hybrid")
    problem = (
        "the unet has one output per channel, and none for a variance; add diffusion=ddpm"
        if name in ("learned", "learned_range")
        else "is not a variance that can be imported; add diffusion=..."
    )
    require(name in _VARIANCES, "scheduler.variance_type", name, problem)
    return node("GaussianDiffusion", variance=_VARIANCES[name])


def _clipping(config: Mapping[str, Any]) -> list[str]:
    """Return notes about clipping, an option of samplers.

    Raises:
        ConfigError: a range that samplers do not have.
    """
    remedy = "set it to 1 in scheduler_config.json: samplers clip to the range of the data"
    dynamic = bool(config.get("thresholding", False))
    clip_by_default = config.get("_class_name") in (None, "DDPMScheduler", "DDIMScheduler")
    clips = config.get("clip_sample", clip_by_default)
    key = "sample_max_value" if dynamic else "clip_sample_range"
    limit = config.get(key, 1.0)
    if dynamic or clips:
        require(limit == 1, f"scheduler.{key}", limit, "is not supported", remedy)
        return []  # with this limit, dynamic thresholding is clipping
    return ["its scheduler does not clip x0: add sampler.clip=none to sample as it does"]


def scheduler_config(diffusion: GaussianDiffusion) -> dict[str, Any]:
    """Return the config of the ``DDPMScheduler`` that equals a process.

    Raises:
        ConfigError: an option without an equivalent, with the reason.
    """
    kind = type(diffusion.objective)
    names = [name for name, (_, each) in _OBJECTIVES.items() if kind is each]
    problem = "diffusers has pred_noise, pred_x0 and pred_v only"
    require(bool(names), "objective", kind.__name__, problem)
    problem = "diffusers expects a variance there, not its logarithm; use format=safetensors"
    learned = diffusion.variance == "learned"
    require(not learned, "diffusion.variance", "learned", problem)
    steps = diffusion.num_steps
    rescaled = diffusion.rescale_timesteps and steps != _STEPS
    problem = f"gives the network t * 1000 / {steps}, but diffusers gives t; use format=safetensors"
    require(not rescaled, "diffusion.rescale_timesteps", True, problem)
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": steps,
        **_beta_options(diffusion.schedule),
        "variance_type": diffusion.variance,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "prediction_type": names[0],
        "thresholding": False,
        "timestep_spacing": "trailing",  # begins at T-1, as sampling here
        "steps_offset": 0,
    }


def _beta_options(schedule: Schedule) -> dict[str, Any]:
    """Return the options of a scheduler that define the table of alpha-bar."""
    steps, betas = schedule.num_steps, schedule.betas
    ends = {"beta_start": float(betas[0]), "beta_end": float(betas[-1])}
    named = {"trained_betas": None, "rescale_betas_zero_snr": schedule.zero_terminal_snr}
    line = _betas("linear", steps, ends["beta_start"], ends["beta_end"])
    if not schedule.zero_terminal_snr and torch.allclose(line, betas, rtol=1e-9, atol=0):
        return {"beta_schedule": "linear", **ends, **named}
    default = {"beta_start": 1e-4 * _STEPS / steps, "beta_end": 0.02 * _STEPS / steps}
    for name, make in (("linear", linear), ("squaredcos_cap_v2", cosine)):
        try:
            same = make(num_steps=steps, zero_terminal_snr=schedule.zero_terminal_snr)
        except ConfigError:  # too few steps for this schedule
            continue
        if torch.allclose(same.alpha_bar, schedule.alpha_bar, rtol=1e-9, atol=0):
            return {"beta_schedule": name, **default, **named}
    return {
        "beta_schedule": "linear",  # without effect
        **default,
        "trained_betas": betas.tolist(),
        "rescale_betas_zero_snr": False,
    }
