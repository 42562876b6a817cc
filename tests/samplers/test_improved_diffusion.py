"""DDIM steps forwards and backwards against improved-diffusion's, on its own grids."""

import pytest
import torch

from ddpm.diffusion import Denoiser
from ddpm.samplers import DDIM, DDPM
from tests.diffusion.iddpm_cases import NAMES, iddpm_case
from tests.reference_cases import relative_error


def rows(name):
    """Of each sample: its number, denoiser, x_t, and its steps t, s and the one after t."""
    case = iddpm_case(name)
    for row in range(len(case.t)):
        answer = case["model_output"][row : row + 1]
        denoiser = Denoiser(lambda x, time, answer=answer: answer, case.diffusion)
        steps = tuple(int(steps[row]) for steps in (case.t, case.s, case.after))
        yield case, row, denoiser, case["x_t"][row : row + 1], steps


def float32_noise(case, step):
    """What sqrt(1 - alpha_bar) is off by where alpha_bar is rounded first, as the original does.

    Wrong in its third digit where the step is small. With the same rounding ours is the same.
    """
    alpha_bar = case.diffusion.schedule.alpha_bar_at(step)
    return (1 - alpha_bar.float()).double().sqrt() - (1 - alpha_bar).sqrt()


@pytest.mark.parametrize("name", NAMES)
def test_ddim(name):
    for case, row, denoiser, x_t, (t, s, _) in rows(name):
        steps = "ddim50" if name == "respaced" else None
        asked = []
        out = DDIM(steps=steps).sample(
            denoiser,
            x_t,
            randn_like=torch.randn_like,
            start=t,
            stop=s,
            on_step=lambda done, total, x, asked=asked: asked.append(total),
        )
        assert asked == [1]  # the grid goes from t straight to s
        out = out + float32_noise(case, s) * denoiser(x_t, t).eps
        assert relative_error(out[0], case["ddim_prev"][row]) < 1e-5, row


class OneStep(DDIM):
    """Undoes a single step, wherever it lies."""

    pair = (0, -1)

    def timesteps(self, start, stop=-1, *, num_steps=None):
        return [self.pair]


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
        sampler.pair = (after, t)
        out = sampler.invert(denoiser, x_t, start=after, refine=0)
        out = out + float32_noise(case, after) * eps
        assert relative_error(out[0], expected) < 1e-5, row


@pytest.mark.parametrize("name", NAMES)
def test_the_ancestral_step(name):
    """Mean and standard deviation, by a noise of zeros and one of ones."""
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
