"""Processes of other systems as nodes of our config: schedule, objective, diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddpm.diffusion import Schedule, cosine, linear, sigmoid
from ddpm.errors import ConfigError, require

Node = dict[str, Any]


@dataclass(frozen=True)
class Process:
    """Config nodes of a process; missing options have the defaults of our constructors.

    Attributes:
        schedule: noise schedule.
        objective: target of the network.
        diffusion: variance and loss.
        timesteps: distribution of t in training.
    """

    schedule: Node
    objective: Node
    diffusion: Node = field(default_factory=lambda: node("GaussianDiffusion"))
    timesteps: Node = field(default_factory=lambda: timesteps("Uniform"))

    def nodes(self) -> dict[str, Node]:
        """Return the nodes by their keys in a config."""
        return {
            "schedule": self.schedule,
            "objective": self.objective,
            "diffusion": self.diffusion,
            "timesteps": self.timesteps,
        }


def node(target: str, **options: Any) -> Node:
    """Return the config node of a class or function of ``ddpm.diffusion``."""
    return {"_target_": f"ddpm.diffusion.{target}", **options}


def timesteps(name: str) -> Node:
    """Return the node of a distribution of timesteps, a class of ``ddpm.training``."""
    return {"_target_": f"ddpm.training.{name}"}


_OBJECTIVES = {"pred_noise": "PredNoise", "pred_x0": "PredX0", "pred_v": "PredV"}


def objective(name: str, **options: Any) -> Node:
    """Return the node of an objective: ``pred_noise``, ``pred_x0`` or ``pred_v``."""
    return node(_OBJECTIVES[name], **options)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
}


def schedule_with(betas: Tensor, candidates: Mapping[str, dict[str, Any]]) -> tuple[Schedule, Node]:
    """Return the schedule whose betas, rounded to float32, are those of a file, and its node.

    Args:
        betas: (T,) of the file.
        candidates: names of our schedules to try, with their options.

    Raises:
        ConfigError: (key ``schedule``) no candidate has these betas.
    """
    good = betas.ndim == 1 and len(betas) > 0 and betas.is_floating_point()
    require(good, "schedule", None, "the betas of the file are not a table; add schedule=...")
    for name, options in candidates.items():
        try:
            schedule = SCHEDULES[name](num_steps=len(betas), **options)
        except ConfigError:  # too few steps for this schedule
            continue
        ours = schedule.betas.to(betas.dtype).float()  # files of half precision round them
        close = max(1e-5, 2 * torch.finfo(betas.dtype).eps if betas.dtype != torch.float32 else 0)
        if torch.allclose(ours, betas.float(), rtol=close, atol=1e-9):
            return schedule, node(name, num_steps=len(betas), **options)
    problem = (
        f"the {len(betas)} betas of the file, {float(betas[0]):.4g} to {float(betas[-1]):.4g}, are "
        f"not those of {', '.join(candidates)} at their defaults; add schedule=... with the "
        "parameters of its training"
    )
    raise ConfigError("schedule", None, problem)


def schedule_in(tables: Mapping[str, Tensor] | None) -> Node | None:
    """Return the node of the schedule with the betas of a file, or None if the file has none.

    Raises:
        ConfigError: (key ``schedule``) no schedule has these betas at its defaults.
    """
    betas = (tables or {}).get("betas")
    return None if betas is None else schedule_with(betas, {name: {} for name in SCHEDULES})[1]


def openai(flags: Mapping[str, Any]) -> Process:
    """Return the process of flags of the scripts of improved-diffusion or guided-diffusion.

    Args:
        flags: see ``process`` of :class:`ddpm.interop.recipes.Recipe`.
    """
    steps, learned = flags["num_timesteps"], flags["learn_sigma"]
    fixed = "fixed_small" if flags["sigma_small"] else "fixed_large"
    # Without rescaling the hybrid loss has one term of the bound; our weight applies to T terms.
    weight = 0.001 if flags["rescale_learned_sigmas"] else 1 / steps
    diffusion = node(
        "GaussianDiffusion",
        variance="learned_range" if learned else fixed,
        loss=flags["loss"],
        vlb_weight=weight,
        rescale_timesteps=flags["rescale_timesteps"],
    )
    return Process(
        node(flags["schedule"], num_steps=steps),
        objective(flags["objective"]),
        diffusion,
        timesteps("LossSecondMoment" if flags["loss"] == "vlb" else "Uniform"),
    )
