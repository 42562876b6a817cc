"""A training step in the style of improved-diffusion, to compare speeds with; written anew.

That style is: the optimizer and the average go through the parameters one by one; the norm of every
gradient, the loss and each sample's loss are read by the host at every step; every coefficient of
the schedule is copied to the GPU each time it is used; the batch is copied and waited for; and the
gradients are set to zero rather than dropped.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ddpm.diffusion import Schedule
from ddpm.diffusion.likelihood import discretised_log_likelihood, normal_kl

RATE = 0.9999


def coefficients(schedule: Schedule) -> dict[str, npt.NDArray[np.float64]]:
    """Return the coefficients of the process per timestep, (T,) each."""
    bar = schedule.alpha_bar.numpy()
    before, betas = np.append(1.0, bar[:-1]), schedule.betas.numpy()
    small = betas * (1 - before) / (1 - bar)
    return {
        "signal": np.sqrt(bar),
        "noise": np.sqrt(1 - bar),
        "of_x0": betas * np.sqrt(before) / (1 - bar),
        "of_x": (1 - before) * np.sqrt(1 - betas) / (1 - bar),
        "small": np.log(np.append(small[1], small[1:])),
        "large": np.log(betas),
        "inverse": np.sqrt(1 / bar),
        "inverse_noise": np.sqrt(1 / bar - 1),
        "bar": bar,
        "bar_before": before,
    }


class ImprovedStyle:
    """Trains a network that predicts the noise and the variance, with the hybrid loss.

    Args:
        network: on the device.
        schedule: of the process.
        device: ``cuda`` or ``cpu``.
        dtype: of autocast; None is float32.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, device: str, dtype: torch.dtype | None
    ) -> None:
        self.network, self.device, self.dtype = network, device, dtype
        self.average = [p.detach().clone() for p in network.parameters()]
        parameters = network.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, foreach=False, fused=False)
        self.tables, self.steps = coefficients(schedule), schedule.num_steps
        self.logged: dict[str, float] = {}

    def _at(self, name: str, t: Tensor) -> Tensor:
        """Return a coefficient at t; the whole table is copied to the device for it."""
        values = torch.from_numpy(self.tables[name]).to(self.device)[t].float()
        return values.reshape(-1, 1, 1, 1)

    def step(self, raw: Tensor) -> None:
        """Take a step on uint8 images (B, C, H, W) of the host."""
        x0 = raw.to(self.device).float() / 127.5 - 1
        drawn = np.random.default_rng(0).integers(0, self.steps, len(x0))
        t = torch.from_numpy(drawn).long().to(self.device)
        losses = self._losses(x0, t, torch.randn_like(x0))
        loss = losses.mean()
        self.logged["loss"] = loss.item()
        for place, each in zip(t.cpu().numpy(), losses.detach().cpu().numpy(), strict=True):
            self.logged[f"loss_q{int(4 * place / self.steps)}"] = float(each)
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad.detach_()
                parameter.grad.zero_()
        loss.backward()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        self.logged["grad_norm"] = math.sqrt(sum((each**2).sum().item() for each in gradients))
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.average, self.network.parameters(), strict=True):
                average.mul_(RATE).add_(parameter, alpha=1 - RATE)

    def _losses(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the squared error of the noise plus a thousandth of the bound, (B,)."""
        x = self._at("signal", t) * x0 + self._at("noise", t) * noise
        with torch.autocast(self.device, self.dtype, enabled=self.dtype is not None):
            output = self.network(x, t.float() * (1000.0 / self.steps))
        eps, fraction = output.float().chunk(2, dim=1)
        square = ((eps - noise) ** 2).mean(dim=(1, 2, 3))
        fraction = (fraction + 1) / 2
        log = fraction * self._at("large", t) + (1 - fraction) * self._at("small", t)
        predicted = self._at("inverse", t) * x - self._at("inverse_noise", t) * eps.detach()
        mean = self._at("of_x0", t) * predicted + self._at("of_x", t) * x
        truth = self._at("of_x0", t) * x0 + self._at("of_x", t) * x
        kl = normal_kl(truth, self._at("small", t).expand_as(x), mean, log)
        decoder = -discretised_log_likelihood(x0, mean, 0.5 * log)
        first = (t == 0).reshape(-1, 1, 1, 1)
        bound = torch.where(first, decoder, kl).mean(dim=(1, 2, 3)) / math.log(2)
        return square + bound * self.steps / 1000
