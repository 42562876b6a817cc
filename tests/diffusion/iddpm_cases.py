"""The `iddpm_process_*` cases as our processes, with all timesteps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion import (
    Denoiser,
    GaussianDiffusion,
    Prediction,
    PredNoise,
    PredX0,
    cosine,
    linear,
)
from tests.reference_cases import load_case, relative_error

NAMES = ["fixed_large_x0", "hybrid", "respaced", "vlb"]
LEARNED = ["hybrid", "respaced", "vlb"]
_LOSSES = {"MSE": "simple", "RESCALED_MSE": "hybrid", "RESCALED_KL": "vlb"}


@dataclass(frozen=True)
class Case:
    """A process, the arrays of a case, and its timesteps (B,) in the complete process."""

    diffusion: GaussianDiffusion
    arrays: dict[str, Tensor]
    num_kept: int
    t: Tensor
    s: Tensor
    after: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    @property
    def last(self) -> int:
        """The highest timestep of the respaced process."""
        return (self.num_kept - 1) * (self.diffusion.num_steps // self.num_kept)

    def network(self, x_t: Tensor, time: Tensor) -> Tensor:
        """The constant network."""
        return self.arrays["model_output"]

    def prediction(self, *, clip: bool) -> Prediction:
        """Return the prediction of the network, with x0 clipped or not."""
        prediction = Denoiser(self.network, self.diffusion)(self["x_t"], self.t)
        return prediction.with_x0(prediction.x0.clamp(-1, 1)) if clip else prediction


def iddpm_case(name: str) -> Case:
    """The case ``iddpm_process_{name}``."""
    meta, arrays = load_case(f"iddpm_process_{name}")
    schedule = {"linear": linear, "cosine": cosine}[meta["schedule"]]
    objective = {"START_X": PredX0, "EPSILON": PredNoise}[meta["prediction"]]
    diffusion = GaussianDiffusion(
        schedule(num_steps=meta["timesteps"]),
        objective(),
        variance=meta["variance"].lower(),
        loss=_LOSSES[meta["loss"]],
        rescale_timesteps=meta["rescale_timesteps"],
    )
    num_kept = {None: meta["timesteps"], "ddim50": 50}[meta["respacing"]]
    stride = meta["timesteps"] // num_kept
    at = arrays["t"]
    before = torch.where(at > 0, (at - 1) * stride, -1)
    after = (at + 1).clamp(max=num_kept - 1) * stride
    return Case(diffusion, arrays, num_kept, at * stride, before, after)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Check each sample with a tolerance relative to its largest value."""
    assert actual.shape == expected.shape
    for row in range(len(expected)):
        if not expected[row].any():
            assert not actual[row].any(), row
        else:
            assert relative_error(actual[row], expected[row]) < tolerance, row
