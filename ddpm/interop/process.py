"""The processes of the originals, as nodes of our config: schedule, objective, diffusion."""

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
    """Config nodes; options that a node leaves out are at our constructors' defaults.

    Attributes:
        schedule: of the noise.
        objective: what the network predicts.
        diffusion: variances and losses.
        timesteps: how t is drawn in training.
    """

    schedule: Node
    objective: Node
    diffusion: Node = field(default_factory=lambda: node("GaussianDiffusion"))
    timesteps: Node = field(default_factory=lambda: node("Uniform"))

    def nodes(self) -> dict[str, Node]:
        """By their keys in a config."""
        return {
            "schedule": self.schedule,
            "objective": self.objective,
            "diffusion": self.diffusion,
            "timesteps": self.timesteps,
        }


def node(target: str, **options: Any) -> Node:
    """A config node of what ``ddpm.diffusion`` exports."""
    return {"_target_": f"ddpm.diffusion.{target}", **options}


_OBJECTIVES = {"pred_noise": "PredNoise", "pred_x0": "PredX0", "pred_v": "PredV"}


def objective(name: str, **options: Any) -> Node:
    """The node of an objective by the name that our config, and lucidrains, give it."""
    return node(_OBJECTIVES[name], **options)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
}


def schedule_with(betas: Tensor, candidates: Mapping[str, dict[str, Any]]) -> tuple[Schedule, Node]:
    """The schedule whose betas, rounded to float32, are those of a file, and its node.

    Args:
        betas: what the file has, (T,).
        candidates: names of our schedules to try, with their options.

    Raises:
        ConfigError: (key ``schedule``) it is none of them.
    """
    good = betas.ndim == 1 and len(betas) > 0 and betas.is_floating_point()
    require(good, "schedule", None, "the file's betas are no table; add schedule=...")
    for name, options in candidates.items():
        try:
            schedule = SCHEDULES[name](num_steps=len(betas), **options)
        except ConfigError:  # so few steps are not possible
            continue
        ours = schedule.betas.to(betas.dtype).float()  # files of half precision round them
        close = max(1e-5, 2 * torch.finfo(betas.dtype).eps if betas.dtype != torch.float32 else 0)
        if torch.allclose(ours, betas.float(), rtol=close, atol=1e-9):
            return schedule, node(name, num_steps=len(betas), **options)
    problem = (
        f"the {len(betas)} betas of the file, {float(betas[0]):.4g} to {float(betas[-1]):.4g}, are "
        f"not those of {', '.join(candidates)} at their defaults; add schedule=... with the "
        "parameters that it was trained with"
    )
    raise ConfigError("schedule", None, problem)


def schedule_in(tables: Mapping[str, Tensor] | None) -> Node | None:
    """The node of the schedule with the betas of a file, or None where the file has none.

    Raises ConfigError (key ``schedule``) for betas of no schedule at its defaults.
    """
    betas = (tables or {}).get("betas")
    return None if betas is None else schedule_with(betas, {name: {} for name in SCHEDULES})[1]


def openai(told: Mapping[str, Any]) -> Process:
    """The process that flags of improved-diffusion's or guided-diffusion's scripts describe.

    Args:
        told: as :class:`ddpm.interop.recipes.Recipe` has it under ``process``.
    """
    steps, learned = told["num_timesteps"], told["learn_sigma"]
    fixed = "fixed_small" if told["sigma_small"] else "fixed_large"
    # Unrescaled, the bound's term counts once in the hybrid loss; ours is the weight of T terms.
    weight = 0.001 if told["rescale_learned_sigmas"] else 1 / steps
    diffusion = node(
        "GaussianDiffusion",
        variance="learned_range" if learned else fixed,
        loss=told["loss"],
        vlb_weight=weight,
        rescale_timesteps=told["rescale_timesteps"],
    )
    drawn = "LossSecondMoment" if told["loss"] == "vlb" else "Uniform"
    return Process(
        node(told["schedule"], num_steps=steps),
        objective(told["objective"]),
        diffusion,
        node(drawn),
    )
