"""Properties of all multistep solvers: ends of the path, masks, guidance, no state."""

from itertools import pairwise, product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.diffusion import (
    Clipping,
    Denoiser,
    GaussianDiffusion,
    Prediction,
    PredV,
    PredX0,
    class_conditioning,
    cosine,
    linear,
)
from ddpm.guidance.denoisers import ClassifierFreeGuidance
from ddpm.samplers import DPMpp, UniPC
from tests.oracle import Oracle, normal
from tests.samplers.convergence import ExactDenoiser

SOLVERS = {
    "dpmpp1": (DPMpp, {"order": 1}),
    "dpmpp2": (DPMpp, {"order": 2}),
    "dpmpp2_heun": (DPMpp, {"order": 2, "solver": "heun"}),
    "dpmpp3": (DPMpp, {"order": 3}),
    "dpmpp3_all": (DPMpp, {"order": 3, "lower_order_final": False}),
    "dpmpp1_sde": (DPMpp, {"order": 1, "sde": True}),
    "dpmpp2_sde": (DPMpp, {"order": 2, "sde": True}),
    "unipc1": (UniPC, {"order": 1, "variant": "bh1"}),
    "unipc2": (UniPC, {"order": 2}),
    "unipc2_bh1": (UniPC, {"order": 2, "variant": "bh1", "lower_order_final": False}),
    "unipc3": (UniPC, {"order": 3, "variant": "bh1"}),
    "unipc3_all": (UniPC, {"order": 3, "lower_order_final": False}),
    "unip3": (UniPC, {"order": 3, "corrector": False}),
}
SPACINGS = ["uniform", "quadratic", "trailing", "leading", "log_snr", "karras"]


def build(name, **options):
    """Return a solver by its name in SOLVERS."""
    kind, chosen = SOLVERS[name]
    return kind(**{**chosen, **options})


def network(x_t, time, **_):
    """Return a smooth function of x_t and time."""
    return torch.sin(2 * x_t + time.reshape(-1, *[1] * (x_t.ndim - 1)) / 50)


@pytest.mark.parametrize(
    ("make", "zero_terminal_snr"), [(cosine, False), (cosine, True), (linear, True)]
)
@pytest.mark.parametrize("name", SOLVERS)
def test_samples_are_finite_for_any_path(name, make, zero_terminal_snr):
    schedule = make(num_steps=50, zero_terminal_snr=zero_terminal_snr)
    diffusion = GaussianDiffusion(schedule, PredV())
    x, paths = normal(0)(torch.empty(2, 1, 3)), [(None, -1), (49, 0), (30, 10), (0, -1)]
    for spacing, steps, (start, stop) in product(SPACINGS, (1, 2, 3, 7), paths):
        calls = []

        def counted(x_t, time, calls=calls):
            calls.append(time)
            return network(x_t, time)

        sampler = build(name, steps=steps, spacing=spacing)
        denoiser = Denoiser(counted, diffusion)
        out = sampler.sample(denoiser, x, randn_like=normal(1), start=start, stop=stop)
        assert len(calls) == len(sampler.timesteps(schedule, start=start, stop=stop)) - 1
        assert out.isfinite().all()
        assert out.abs().max() < 20


@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_step_to_clean_data_returns_x0(name):
    predictions = []

    def clean(x_t, time):
        predictions.append(network(x_t, time))
        return predictions[-1]

    diffusion = GaussianDiffusion(linear(num_steps=50), PredX0())
    x = normal(0)(torch.empty(2, 1, 3))
    out = build(name, steps=6).sample(Denoiser(clean, diffusion), x, randn_like=normal(1))
    assert torch.equal(out, predictions[-1])


@pytest.mark.parametrize("name", ["dpmpp2", "dpmpp3", "unipc2", "unipc3", "dpmpp2_sde"])
@pytest.mark.parametrize("make", [linear, cosine])
def test_samples_from_zero_terminal_snr_have_the_distribution_of_the_data(make, name):
    oracle = Oracle(make(num_steps=200, zero_terminal_snr=True), (2, 4))
    x = normal(0)(torch.empty(4000, 2, 4))
    out = build(name, steps=60, spacing="log_snr").sample(
        ExactDenoiser(oracle), x, randn_like=normal(1)
    )
    z = ((out - oracle.mu) / oracle.sigma).double()
    assert z.mean().abs() < 5 / z.numel() ** 0.5 + 0.01
    assert abs(z.std() - 1) < 0.05


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sampler_has_no_state(name):
    diffusion = GaussianDiffusion(cosine(num_steps=50), PredV(), self_condition=True)
    denoiser = Clipping(Denoiser(network, diffusion))
    first, second = normal(0)(torch.empty(2, 2, 1, 3))
    sampler = build(name, steps=8)

    def sample(x, seed, **options):
        return sampler.sample(denoiser, x, randn_like=normal(seed), **options)

    expected, other = sample(first, 1), sample(second, 2, start=40, stop=3)
    inner = []

    def on_step(done, total, x):
        inner.append(sample(second, 2, start=40, stop=3))

    assert torch.equal(sample(first, 1, on_step=on_step), expected)
    assert len(inner) == 8
    assert all(torch.equal(each, other) for each in inner)


@pytest.mark.parametrize("name", SOLVERS)
def test_conditioning_entries_stay_and_do_not_change_the_others(name):
    mask = torch.tensor([[True, False, False, True]])
    condition, x = 3 * normal(0)(torch.empty(2, 2, 1, 4))
    seen = []

    def elementwise(x_t, time):
        seen.append(x_t)
        return network(x_t, time)

    def sample(mask, **options):
        diffusion = GaussianDiffusion(cosine(num_steps=50), PredV(), mask)
        denoiser = Clipping(Denoiser(elementwise, diffusion))
        return build(name, steps=8).sample(denoiser, x, randn_like=normal(1), **options)

    free = sample(None)
    seen.clear()
    out = sample(mask, condition=condition)
    where = mask.expand(2, 1, 4)
    for each in (*seen, out):
        assert torch.equal(each[where], condition[where])
    torch.testing.assert_close(out[~where], free[~where])


@pytest.mark.parametrize("name", SOLVERS)
def test_the_network_receives_its_previous_prediction(name):
    received, returned = [], []

    def conditioned(x_t, time, x_self_cond):
        received.append(x_self_cond)
        return network(x_t, time) + 0.1 * x_self_cond

    class Recorded(Denoiser):
        def __call__(self, *args, **options):
            prediction = super().__call__(*args, **options)
            returned.append(prediction.x0)
            return prediction

    diffusion = GaussianDiffusion(cosine(num_steps=50), PredV(), self_condition=True)
    x = normal(0)(torch.empty(2, 1, 3))
    build(name, steps=5).sample(Recorded(conditioned, diffusion), x, randn_like=normal(1))
    assert received[0].abs().max() == 0
    assert all(torch.equal(a, b) for a, b in zip(received[1:], returned, strict=False))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_learned_variance_is_not_used(name):
    learned = {"variance": "learned_range", "loss": "hybrid"}
    x = normal(0)(torch.empty(2, 1, 3))

    def doubled(x_t, time):
        output = network(x_t, time)
        return torch.cat([output, 9 * output], dim=1)

    out, expected = (
        build(name, steps=5).sample(Denoiser(model, process), x, randn_like=normal(1))
        for model, process in [
            (doubled, GaussianDiffusion(cosine(num_steps=50), PredV(), **learned)),
            (network, GaussianDiffusion(cosine(num_steps=50), PredV())),
        ]
    )
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", SOLVERS)
def test_classifier_free_guidance_calls_the_network_once_per_step(name):
    sizes = []

    def labelled(x_t, time, y):
        sizes.append(len(x_t))
        return network(x_t, time) * (1 + y.reshape(-1, 1, 1)) / 4

    diffusion = GaussianDiffusion(cosine(num_steps=50), PredV())
    denoiser = Denoiser(labelled, diffusion)
    labels = class_conditioning(torch.tensor([0, 2]), null=3)
    x = normal(0)(torch.empty(2, 1, 3))
    plain, unguided, guided = (
        build(name, steps=5).sample(each, x, randn_like=normal(1), conditioning=labels)
        for each in (
            denoiser,
            ClassifierFreeGuidance(denoiser, scale=1.0),
            ClassifierFreeGuidance(denoiser, scale=3.0),
        )
    )
    assert sizes == [2] * 5 + [4] * 10
    torch.testing.assert_close(unguided, plain)
    assert (guided - plain).abs().max() > 0.01


class Count(TorchDispatchMode):
    """Count tensor operations."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


class Constant:
    """Denoiser that calls no tensor operation."""

    needs_gradients = False

    def __init__(self):
        self.diffusion = GaussianDiffusion(cosine(num_steps=50), PredV())
        self.x0 = torch.ones(2, 1, 3)

    def __call__(self, x_t, t, previous_x0=None, conditioning=None):
        return Prediction(self.x0, x_t, *self.diffusion.schedule.signal_noise(t))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("dpmpp1", 2),
        ("dpmpp2", 3),
        ("dpmpp3_all", 4),
        ("dpmpp2_sde", 4),
        ("unipc1", 4),
        ("unipc2", 6),
        ("unipc3_all", 8),
        ("unip3", 4),
    ],
)
def test_number_of_tensor_operations_per_step(name, number):
    counts, noise, denoiser = [0], torch.zeros(2, 1, 3), Constant()
    with Count() as count:
        build(name, steps=10).sample(
            denoiser,
            noise,
            randn_like=lambda x: noise,
            on_step=lambda done, total, x: counts.append(count.number),
        )
    assert max(b - a for a, b in pairwise(counts)) == number
