"""The trial of a step measures its duration and changes nothing."""

import pytest
import torch
from torch import nn

from ddpm.diffusion import DiffusionLoss, GaussianDiffusion, PredNoise, cosine
from ddpm.errors import ConfigError
from ddpm.training import checkpoint, trial
from ddpm.training.optimizer import AdamW
from ddpm.training.trainer import GradientDecision
from ddpm.training.trial import median_seconds, seconds_per_step
from tests.training.test_trainer import METADATA, Fit, Points, fit, folder, trainer

CPU = torch.device("cpu")


class Clock:
    """Clock that tests advance."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(trial, "time", made)
    return made


def durations(clock, *seconds):
    """Return a function whose calls have these durations."""
    rest = iter(seconds)

    def work():
        clock.now += next(rest)

    return work


@pytest.mark.parametrize(
    ("taken", "seconds", "median", "calls"),
    [
        ([9, 1, 2, 3], 15, 2, 4),  # the first one is not counted
        ([9], 9, 9, 1),  # alone too long: it is counted
        ([9, 1], 9.5, 1, 2),
        ([1, 2], 3, 2, 2),
        ([5, *range(1, 11)], 1000, 5.5, 11),  # at most ten are counted
    ],
)
def test_median_of_those_after_the_first(clock, taken, seconds, median, calls):
    work = durations(clock, *taken)
    assert median_seconds(work, CPU, seconds=seconds) == median
    assert clock.now == sum(taken[:calls])
    clock.now = 0.0
    few = median_seconds(durations(clock, *taken), CPU, seconds=seconds, passes=1)
    assert (few, clock.now) == (taken[min(calls, 2) - 1], sum(taken[: min(calls, 2)]))


class Noisy(nn.Module):
    """A network with random numbers and a buffer in its forward pass, and an unused parameter."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Conv2d(1, 1, 1), nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(1)
        self.unused = nn.Parameter(torch.ones(3))
        nn.init.constant_(self.layer.weight, 0.5)

    def forward(self, x, t=None, y=None, x_self_cond=None):
        x = x if x_self_cond is None else x + x_self_cond
        return self.norm(self.drop(self.layer(x)))


def state(training):
    """Return everything that a step may change."""
    optimizer = training.optimizer.state_dict()["state"]
    return {
        **{f"raw.{name}": value.clone() for name, value in training.network.state_dict().items()},
        **{f"ema.{name}": v.clone() for name, v in training.ema.model.state_dict().items()},
        **{f"{i}.{n}": v.clone() for i, of in optimizer.items() for n, v in of.items()},
        "random": torch.get_rng_state(),
    }


@pytest.mark.parametrize("moment", ["at the start", "between two steps", "in eval mode"])
def test_a_trial_changes_nothing(moment):
    process = GaussianDiffusion(cosine(num_steps=4), PredNoise(), self_condition=True)
    training = trainer(DiffusionLoss(process), Noisy(), accumulate=2, clip_grad_norm=1.0)
    if moment == "between two steps":
        training.network.train()
        training.accumulate_gradient(training.loader.batches(0))
        training.apply_gradient(GradientDecision(use=True, counts=True))
    if moment == "in eval mode":
        training.network.eval()
    before, mode, seeds = state(training), training.network.training, torch.initial_seed()
    assert seconds_per_step(training, seconds=0.05) > 0
    after = state(training)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in training.network.parameters())
    assert (training.network.training, torch.initial_seed()) == (mode, seeds)
    assert training.samples == 8 * training.step


def test_trial_does_not_change_the_bits_of_a_run(tmp_path):
    weights = []
    for name in ("plain", "tried"):
        torch.manual_seed(1)  # of the first weights alone
        loss = DiffusionLoss(GaussianDiffusion(cosine(num_steps=4), PredNoise()))
        training = trainer(loss, Noisy(), lr=0.1)
        if name == "tried":
            seconds_per_step(training, seconds=0.05)
        fit(training, folder(tmp_path / name), METADATA)
        weights.append(checkpoint.load(checkpoint.listed(tmp_path / name)[0]).weights("ema"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Slow(Fit):
    """Loss that takes a second of the clock, or two with self-conditioning."""

    clock: Clock

    def __call__(self, model, x0, t, noise, estimator=None, conditioning=None):
        self.clock.now += 1 if estimator is None else 2
        return super().__call__(model, x0, t, noise, None, conditioning)


@pytest.mark.parametrize(
    ("self_condition", "accumulate", "expected"), [(False, 1, 1), (False, 4, 4), (True, 2, 3)]
)
def test_all_passes_of_a_step_are_counted(clock, self_condition, accumulate, expected):
    loss = Slow(self_condition=self_condition)
    loss.clock = clock
    training = trainer(loss, accumulate=accumulate)
    assert seconds_per_step(training, seconds=20) == expected


def test_only_a_part_of_a_large_network_is_copied(clock, monkeypatch):
    """The weight is one of the two parameters, so that the duration is doubled."""
    monkeypatch.setattr(trial, "_MAX_COPIED", 1)
    copied = []

    class Optimizer(AdamW):
        def step(self, closure=None):
            copied.append(sum(p.numel() for group in self.param_groups for p in group["params"]))
            clock.now += 1
            return super().step(closure)

    monkeypatch.setattr(trial, "AdamW", Optimizer)
    training = trainer()
    copied.clear()
    assert seconds_per_step(training, seconds=4) == 2  # the weight alone: one of two numbers
    assert set(copied) == {1}


class Unreadable(Points):
    """Data that cannot be read."""

    def fetch(self, indices, keys):
        raise ConfigError("path", "x.png", "is damaged; remove it")


def test_data_that_cannot_be_read():
    with pytest.raises(ConfigError, match=r"data\.path=x\.png: is damaged"):
        seconds_per_step(trainer(data=Unreadable()))
