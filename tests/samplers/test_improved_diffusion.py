"""DDIM steps in both directions compared with improved-diffusion, on its grids."""

import pytest
import torch

from ddpm.diffusion import Clipping, Denoiser
from ddpm.inversion import invert
from ddpm.samplers import DDIM, DDPM
from tests.diffusion.iddpm_cases import NAMES, iddpm_case
from tests.reference_cases import relative_error


def rows(name):
    """Yield per sample: index, denoiser, x_t, and the timesteps t, s and the next above t."""
    case = iddpm_case(name)
    for row in range(len(case.t)):
        answer = case["model_output"][row : row + 1]
        denoiser = Clipping(Denoiser(lambda x, time, answer=answer: answer, case.diffusion))
        steps = tuple(int(steps[row]) for steps in (case.t, case.s, case.after))
        yield case, row, denoiser, case["x_t"][row : row + 1], steps


def float32_noise(case, step):
    """Error of sqrt(1 - alpha_bar) if alpha_bar is rounded first, as in the original.

    Wrong in its third digit where the step is small. With the same rounding ours is the same.
    """
    alpha_bar = case.diffusion.schedule.alpha_bar_at(torch.tensor(step))
    return (1 - alpha_bar.float()).double().sqrt() - (1 - alpha_bar).sqrt()


@pytest.mark.parametrize("name", NAMES)
def test_ddim(name):
    for case, row, denoiser, x_t, (t, s, _) in rows(name):
        steps = "ddim50" if name == "respaced" else None
        times = []
        out = DDIM(steps=steps).sample(
            denoiser,
            x_t,
            randn_like=torch.randn_like,
            start=t,
            stop=s,
            on_step=lambda done, total, x, times=times: times.append(total),
        )
        assert times == [1]  # the grid goes from t straight to s
        out = out + float32_noise(case, s) * denoiser(x_t, t).eps
        assert relative_error(out[0], case["ddim_prev"][row]) < 1e-5, row


class OneStep(DDIM):
    """A sampler that inverts a single step."""

    times = (0, -1)

    def timesteps(self, schedule, *, start=None, stop=-1):
        return [*self.times]


@pytest.mark.parametrize("name", NAMES)
def test_ddim_backwards(name):
    for case, row, denoiser, x_t, (t, _, after) in rows(name):
        eps = denoiser(x_t, t).eps
        expected = case["ddim_next"][row]
        if after == t:
            # The original's next alpha_bar after the last is 0: all noise. Ours has no such step.
            assert relative_error(eps[0], expected) < 1e-5
            continue
        sampler = OneStep()
        sampler.times = (after, t)
        out = invert(sampler, denoiser, x_t, start=after, refine=0)
        out = out + float32_noise(case, after) * eps
        assert relative_error(out[0], expected) < 1e-5, row


@pytest.mark.parametrize("name", NAMES)
def test_the_ancestral_step(name):
    """Return mean and standard deviation, from noises of zeros and of ones."""
    steps = "ddim50" if name == "respaced" else None
    for case, row, denoiser, x_t, (t, s, _) in rows(name):
        mean, above = (
            DDPM(steps=steps).sample(denoiser, x_t, randn_like=randn_like, start=t, stop=s)
            for randn_like in (torch.zeros_like, torch.ones_like)
        )
        assert relative_error(mean[0], case["mean"][row]) < 1e-5
        if s < 0:
            assert torch.equal(mean, above)
        else:
            expected = (0.5 * case["log_variance"][row]).exp()
            assert relative_error(mean[0] + expected, above[0]) < 1e-6
            assert relative_error((above - mean)[0], expected) < 2e-5 / expected.min()
