"""Timestep distributions: weights of the original, unbiasedness, histories, state."""

import math

import numpy as np
import pytest
import torch

from ddpm.diffusion import cosine, edm, rectified
from ddpm.errors import ConfigError
from ddpm.training import (
    BatchPart,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    Stratified,
    Uniform,
)
from tests.reference_cases import load_case

CPU = torch.device("cpu")


def filled(losses, **options):
    """Return a distribution over one timestep per loss, with full histories."""
    sampler = LossSecondMoment(cosine(num_steps=len(losses)), history_per_term=2, **options)
    for _ in range(2):
        sampler.update(torch.arange(len(losses)), torch.tensor(losses, dtype=torch.float64))
    return sampler


def test_weights_match_improved_diffusion():
    meta, case = load_case("iddpm_loss_second_moment")
    T, size = meta["num_timesteps"], meta["history_per_term"]
    sampler = LossSecondMoment(
        cosine(num_steps=T), history_per_term=size, uniform_prob=meta["uniform_prob"]
    )
    sampler.update(case["ts"], case["losses"])
    torch.testing.assert_close(sampler.weights(), case["weights"], rtol=1e-12, atol=0)
    assert sampler.adaptive


@pytest.mark.parametrize("batch", [1, 7, 80])
def test_weights_do_not_depend_on_the_batching_of_losses(batch):
    meta, case = load_case("iddpm_loss_second_moment")
    sampler = LossSecondMoment(
        cosine(num_steps=meta["num_timesteps"]), history_per_term=3, uniform_prob=0.01
    )
    for t, losses in zip(case["ts"].split(batch), case["losses"].split(batch), strict=True):
        sampler.update(t, losses)
    torch.testing.assert_close(sampler.weights(), case["weights"], rtol=1e-12, atol=0)


def test_weights_match_their_formula():
    losses = [0.5, 0.0, 2.0, 1.5]
    weights = filled(losses, uniform_prob=0.2).weights()
    assert weights.dtype == torch.float64
    expected = [0.8 * loss / 4 + 0.2 / 4 for loss in losses]
    assert weights.tolist() == pytest.approx(expected, rel=1e-12)
    sampler = filled(losses, uniform_prob=0.2)
    sampler.update(torch.tensor([0]), torch.tensor([3.5]))  # root mean square of 0.5 and 3.5
    root = math.sqrt((0.25 + 12.25) / 2)
    assert sampler.weights()[0].item() == pytest.approx(0.8 * root / (root + 3.5) + 0.05, rel=1e-12)


def test_distribution_is_uniform_until_every_history_is_full():
    sampler = LossSecondMoment(cosine(num_steps=3), history_per_term=4)
    sampler.update(torch.tensor([0, 1] * 6), torch.tensor([5.0, 1.0] * 6))
    sampler.update(torch.tensor([2, 2, 2]), torch.ones(3))
    assert sampler.weights().tolist() == [1 / 3] * 3
    sampler.update(torch.tensor([2]), torch.ones(1))
    weights = sampler.weights()
    assert weights.tolist() == pytest.approx([0.999 * w / 7 + 0.001 / 3 for w in (5, 1, 1)])


def test_distribution_is_uniform_if_all_losses_are_0():
    assert filled([0.0, 0.0, 0.0]).weights().tolist() == [1 / 3] * 3


def test_the_oldest_losses_are_dropped():
    sampler = LossSecondMoment(cosine(num_steps=2), history_per_term=3)
    sampler.update(torch.tensor([0] * 5 + [1] * 2), torch.tensor([9.0, 8, 1, 2, 3, 7, 6]))
    state = sampler.state()
    assert state["history"].tolist() == [[1, 2, 3], [7, 6, 0]]
    assert state["counts"].tolist() == [3, 2]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_losses_that_are_not_finite_are_ignored(bad):
    sampler = LossSecondMoment(cosine(num_steps=2), history_per_term=2)
    sampler.update(torch.tensor([0, 0, 1, 0]), torch.tensor([1.0, bad, bad, 4.0]))
    assert sampler.state()["history"].tolist() == [[1, 4], [0, 0]]
    assert sampler.state()["counts"].tolist() == [2, 0]


@pytest.mark.parametrize("sampler", [filled([0.0, 1.0, 5.0, 0.1]), Uniform(cosine(num_steps=4))])
def test_importance_weights_preserve_the_mean(sampler):
    """sum p / (T p) f = mean f; each draw has the weight 1 / (T p) of its timestep."""
    p = sampler.weights()
    assert p.sum().item() == pytest.approx(1, rel=1e-12)
    torch.manual_seed(0)
    t, weights = sampler.draw(40000, CPU)
    assert t.shape == (40000,)
    assert t.dtype == torch.int64
    share = torch.bincount(t, minlength=4) / 40000
    assert (share - p).abs().max() < 5 * 0.5 / 200
    if isinstance(sampler, Uniform):
        assert weights is None
        assert p.tolist() == [0.25] * 4
        assert not sampler.adaptive
        return
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, (1 / (4 * p[t])).float())
    f = torch.tensor([3.0, -1.0, 10.0, 2.0], dtype=torch.float64)
    assert (p * (1 / (4 * p)) * f).sum().item() == pytest.approx(f.mean().item(), rel=1e-12)
    drawn = weights.double() * f[t]
    error = drawn.std().item() / 200
    assert drawn.mean().item() == pytest.approx(f.mean().item(), abs=5 * error)


def test_draws_depend_on_the_seed_only():
    for sampler in (filled([0.3, 1.0, 5.0]), Uniform(cosine(num_steps=3))):
        torch.manual_seed(5)
        first, _ = sampler.draw(50, CPU)
        second, _ = sampler.draw(50, CPU)
        torch.manual_seed(5)
        again, _ = sampler.draw(50, CPU)
        assert torch.equal(first, again)
        assert not torch.equal(first, second)


def test_gradient_variance_is_below_that_of_uniform_timesteps():
    """Terms of the bound differ by orders of magnitude; empirical variance and closed form."""
    T, count = 50, 20000
    terms = 10.0 ** -torch.linspace(0, 4, T, dtype=torch.float64)

    def gradients(sampler):
        """Return the gradient of ``parameter * terms[t]`` in the parameter, one per draw."""
        t, weights = sampler.draw(count, CPU)
        parameter = torch.ones(count, requires_grad=True, dtype=torch.float64)
        ((1 if weights is None else weights) * parameter * terms[t]).sum().backward()
        return parameter.grad

    torch.manual_seed(1)
    sampler = filled(terms.tolist(), uniform_prob=0.1)
    ours, uniform = gradients(sampler), gradients(Uniform(cosine(num_steps=T)))
    mean = terms.mean().item()
    assert ours.mean().item() == pytest.approx(mean, rel=0.02)
    assert uniform.mean().item() == pytest.approx(mean, rel=0.1)
    assert uniform.var().item() == pytest.approx((terms**2).mean().item() - mean**2, rel=0.1)
    exact = ((terms / T) ** 2 / sampler.weights()).sum().item() - mean**2
    assert ours.var().item() == pytest.approx(exact, rel=0.1)
    assert ours.var() < uniform.var() / 30


def test_a_restored_state_continues_identically():
    first = filled([0.5, 2.0, 1.0])
    first.update(torch.tensor([1]), torch.tensor([9.0]))
    state = first.state()
    second = LossSecondMoment(cosine(num_steps=3), history_per_term=2)
    second.load(state)
    for sampler in (first, second):  # the saved state is a copy
        sampler.update(torch.tensor([0, 1, 2, 2]), torch.tensor([4.0, 3.0, 2.0, 1.0]))
    assert state["history"].tolist() == [[0.5, 0.5], [2, 9], [1, 1]]
    assert state["counts"].tolist() == [2, 2, 2]
    assert torch.equal(first.weights(), second.weights())
    assert first.state()["history"].tolist() == [[0.5, 4], [9, 3], [2, 1]]
    assert torch.equal(second.state()["history"], first.state()["history"])
    torch.manual_seed(2)
    drawn = first.draw(20, CPU)
    torch.manual_seed(2)
    again = second.draw(20, CPU)
    assert torch.equal(drawn[0], again[0])
    assert torch.equal(drawn[1], again[1])
    assert Uniform(cosine(num_steps=3)).state() == {}
    Uniform(cosine(num_steps=3)).load({})


def test_a_restored_partial_history_is_filled_further():
    first, second = (LossSecondMoment(cosine(num_steps=2), history_per_term=3) for _ in range(2))
    first.update(torch.tensor([0, 0, 1]), torch.tensor([1.0, 2.0, 3.0]))
    second.load(first.state())
    second.update(torch.tensor([0, 0]), torch.tensor([5.0, 6.0]))
    assert second.state()["history"].tolist() == [[2, 5, 6], [3, 0, 0]]


@pytest.mark.parametrize(("num_steps", "size"), [(4, 2), (3, 5), (3, 1)])
def test_a_state_of_another_shape_is_rejected(num_steps, size):
    other = LossSecondMoment(cosine(num_steps=num_steps), history_per_term=size)
    other.update(torch.arange(num_steps), torch.ones(num_steps))
    sampler = filled([0.5, 2.0, 1.0])
    before = sampler.state()
    with pytest.raises((RuntimeError, ValueError, ConfigError)):
        sampler.load(other.state())
    assert torch.equal(sampler.state()["history"], before["history"])
    assert torch.equal(sampler.state()["counts"], before["counts"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"history_per_term": 0}, "history_per_term=0: must be at least 1"),
        ({"uniform_prob": 0.0}, "uniform_prob=0.0: must be above 0 and at most 1"),
        ({"uniform_prob": 1.1}, "uniform_prob=1.1: must be above 0 and at most 1"),
    ],
)
def test_invalid_options_are_rejected(options, line):
    with pytest.raises(ConfigError) as caught:
        LossSecondMoment(cosine(num_steps=10), **options)
    assert str(caught.value) == line


@pytest.mark.parametrize("count", [2, 16, 300])
def test_draws_are_those_of_multinomial(count):
    """The cumulative sum is that of whole numbers, on which the order has no effect."""
    sampler = filled((torch.rand(1000, dtype=torch.float64) ** 4).tolist())
    for seed in range(20):
        torch.manual_seed(seed)
        t, _ = sampler.draw(count, CPU)
        after = torch.rand(())
        torch.manual_seed(seed)
        assert torch.equal(t, torch.multinomial(sampler.weights(), count, replacement=True))
        assert torch.equal(after, torch.rand(()))


def test_histories_are_those_of_a_loop():
    """Timesteps occur up to six times in a batch, and histories have one to four losses."""
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 4):
        sampler = LossSecondMoment(cosine(num_steps=5), history_per_term=size)
        expected = [[] for _ in range(5)]
        for count in (1, 3, 7, 30, 2, 12):
            t = torch.randint(0, 5, (count,), generator=generator)
            losses = torch.rand(count, generator=generator)
            losses[torch.rand(count, generator=generator) < 0.2] = math.nan
            sampler.update(t, losses)
            for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
                if math.isfinite(loss):
                    expected[step] = [*expected[step], loss][-size:]
            padded = [each + [0.0] * (size - len(each)) for each in expected]
            assert sampler.state()["history"].tolist() == padded
            assert sampler.state()["counts"].tolist() == [len(each) for each in expected]


def test_the_state_is_on_the_device_of_the_losses():
    """Meta tensors have no values: reading one is an error."""
    sampler, meta = filled([1.0, 2.0, 3.0, 4.0]), torch.device("meta")
    expected, weights = sampler.draw(6, CPU)
    for _ in range(2):
        t, w = sampler.draw(6, meta)
        assert t.is_meta and w.is_meta and (t.dtype, w.dtype) == (expected.dtype, weights.dtype)
        sampler.update(t, torch.ones(6, device=meta))
    assert sampler.weights().is_meta


def parts_of(sampler, count, world, micro, uniform):
    """Return the timesteps of all processes and micro-batches, one list per part."""
    total = world * micro
    return [
        sampler.draw(count, CPU, BatchPart(index, total, uniform))[0].tolist()
        for index in range(total)
    ]


@pytest.mark.parametrize(("world", "micro"), [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("num_steps", [1000, 7])
def test_a_batch_has_one_timestep_per_stratum(num_steps, world, micro):
    sampler = Stratified(cosine(num_steps=num_steps))
    for uniform in (0.0, 0.37, 0.999999, 1.0):  # 1 by rounding
        parts = parts_of(sampler, 5, world, micro, uniform)
        batch = sorted(t for part in parts for t in part)
        size = 5 * world * micro
        expected = [min(num_steps * (i + uniform) / size, num_steps - 1) for i in range(size)]
        assert batch == pytest.approx([math.floor(t + 1e-9) for t in expected], abs=1)
        assert 0 <= batch[0] and batch[-1] < num_steps
        for part in parts:  # each part is spread over all timesteps
            assert np.diff(part).min() >= num_steps // 5 - 1
    if num_steps == 1000:
        strata = sorted(
            t * size // num_steps for part in parts_of(sampler, 5, world, micro, 0.4) for t in part
        )
        assert strata == list(range(size))


def test_stratified_timesteps_are_uniform_over_steps():
    sampler = Stratified(cosine(num_steps=10))
    assert sampler.weights().tolist() == [0.1] * 10 and not sampler.adaptive
    torch.manual_seed(0)
    drawn = torch.cat([sampler.draw(3, CPU)[0] for _ in range(6_000)])
    assert drawn.dtype == torch.int64 and sampler.draw(3, CPU)[1] is None
    share = torch.bincount(drawn, minlength=10) / len(drawn)
    assert (share - 0.1).abs().max() < 0.01


def test_stratification_reduces_the_variance_of_the_mean():
    losses = torch.linspace(0, 1, 1000, dtype=torch.float64) ** 2
    schedule = cosine(num_steps=1000)
    torch.manual_seed(0)
    variances = [
        torch.stack([losses[sampler.draw(16, CPU)[0]].mean() for _ in range(500)]).var().item()
        for sampler in (Uniform(schedule), Stratified(schedule))
    ]
    assert variances[1] < variances[0] / 10


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.5), (1.0, 1.5)])
def test_logit_normal_moments(mean, std):
    sampler = LogitNormal(rectified(num_steps=1000), mean=mean, std=std)
    torch.manual_seed(1)
    t, weights = sampler.draw(50_000, CPU)
    assert t.dtype == torch.float32 and weights is None and not sampler.adaptive
    inner = ((t + 1) / 1000).double().logit()[(t > 0) & (t < 998)]
    assert inner.mean().item() == pytest.approx(mean, abs=0.02)
    assert inner.std().item() == pytest.approx(std, abs=0.02)
    assert t.min() >= 0 and t.max() <= 999


def test_logit_normal_times_are_those_of_the_flow():
    sampler = LogitNormal(rectified(num_steps=1000))
    torch.manual_seed(1)
    t, _ = sampler.draw(1000, CPU)
    torch.manual_seed(1)
    u = torch.randn(1000, dtype=torch.float64).sigmoid()
    a, s = sampler.schedule.alpha(t), sampler.schedule.sigma(t)
    inside = u > 0.02  # between its first timesteps the table is not the straight path
    torch.testing.assert_close((s / (a + s))[inside], u[inside], rtol=2e-4, atol=0)


@pytest.mark.parametrize("schedule", [edm(num_steps=1000), cosine(num_steps=400)])
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.5, 0.4)])
def test_log_normal_moments(schedule, mean, std):
    sampler = LogNormal(schedule, p_mean=mean, p_std=std)
    torch.manual_seed(2)
    t, weights = sampler.draw(20_000, CPU)
    assert t.dtype == torch.float32 and weights is None
    torch.manual_seed(2)
    exact = mean + std * torch.randn(20_000, dtype=torch.float64)
    log_sigma = -schedule.log_snr(t) / 2
    low, high = (-schedule.log_snr(end) / 2 for end in (0, schedule.num_steps - 1))
    torch.testing.assert_close(log_sigma, exact.clamp(low, high), rtol=0, atol=2e-3)
    assert exact.mean().item() == pytest.approx(mean, abs=0.05)


@pytest.mark.parametrize(
    "sampler",
    [
        LogitNormal(rectified(num_steps=12), mean=0.3, std=0.9),
        LogNormal(edm(num_steps=12), p_mean=-1.0, p_std=2.0),
        LogNormal(cosine(num_steps=12)),
    ],
)
def test_weights_of_real_times_are_the_frequencies_of_their_nearest_timesteps(sampler):
    weights = sampler.weights()
    assert weights.dtype == torch.float64 and weights.sum().item() == pytest.approx(1)
    torch.manual_seed(3)
    t, _ = sampler.draw(40_000, CPU)
    share = torch.bincount(t.round().long(), minlength=12) / 40_000
    assert (share - weights).abs().max() < 0.01


@pytest.mark.parametrize(
    ("make", "options", "line"),
    [
        (LogitNormal, {"std": 0.0}, "std=0.0: must be above 0"),
        (LogNormal, {"p_std": -1.0}, "p_std=-1.0: must be above 0"),
    ],
)
def test_a_density_needs_a_positive_deviation(make, options, line):
    with pytest.raises(ConfigError) as caught:
        make(cosine(num_steps=5), **options)
    assert str(caught.value) == line
