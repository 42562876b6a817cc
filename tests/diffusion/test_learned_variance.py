"""Learned variances and the losses that train them."""

import math

import pytest
import torch

from ddpm.diffusion import (
    Clipping,
    Denoiser,
    DiffusionLoss,
    GaussianDiffusion,
    PredNoise,
    PredV,
    PredX0,
    bound_term,
    cosine,
    linear,
)
from ddpm.errors import ConfigError
from tests.oracle import normal

T = 40
SCHEDULE = cosine(num_steps=T)
STEPS = torch.tensor([0, 1, 17, T - 1])


def process(variance="learned_range", loss="hybrid", objective=PredNoise, **options):
    return GaussianDiffusion(SCHEDULE, objective(), variance=variance, loss=loss, **options)


def batch(seed=0, spatial=(6,)):
    """Return clean data, noise and an output with twice the channels, at STEPS."""
    x0, noise = normal(seed)(torch.empty(2, 4, 2, *spatial))
    return 0.3 * x0, noise, normal(seed + 1)(torch.empty(4, 4, *spatial))


def variances(t, s, after):
    """Return the variances of the posterior and of the forward step, by their formulas."""
    table = [*SCHEDULE.alpha_bar.tolist(), 1.0]  # [-1] is clean
    top, at = (after, t) if s < 0 else (t, s)
    share = table[top] / table[at]
    return (1 - share) * (1 - table[at]) / (1 - table[top]), 1 - table[t] / table[s]


PAIRS = [(39, 38, 39), (17, 3, 29), (8, 7, 9), (0, -1, 1), (5, -1, 11), (39, 0, 39)]


@pytest.mark.parametrize(("t", "s", "after"), PAIRS)
@pytest.mark.parametrize("tensors", [False, True])
def test_learned_range_lies_between_the_two_fixed_variances(t, s, after, tensors):
    small, large = variances(t, s, after)
    like = torch.zeros(1, 2, 3)
    steps = [torch.tensor([step]) for step in (t, s, after)] if tensors else [t, s, after]
    for spread, expected in (
        (-1.0, math.log(small)),
        (1.0, math.log(large)),
        (0.0, (math.log(small) + math.log(large)) / 2),
        (-2.0, 1.5 * math.log(small) - 0.5 * math.log(large)),  # no bound holds it within
    ):
        log = process().log_variance(torch.full_like(like, spread), *steps, like=like)
        assert log.shape == like.shape
        assert log.flatten().tolist() == pytest.approx([expected] * 6, rel=1e-5)
    for kind, expected in (("fixed_small", small), ("fixed_large", large if s >= 0 else small)):
        log = process().log_variance(None, *steps, like=like, kind=kind)
        assert log.shape == like.shape
        assert log.flatten().tolist() == pytest.approx([math.log(expected)] * 6, rel=1e-6)


def test_the_next_higher_timestep_is_the_default():
    like = torch.zeros(4, 2, 3)
    for kind in ("fixed_small", "fixed_large"):
        default = process().log_variance(None, STEPS, STEPS - 1, like=like, kind=kind)
        after = (STEPS + 1).clamp(max=T - 1)
        outputs = process().log_variance(None, STEPS, STEPS - 1, after, like=like, kind=kind)
        assert torch.equal(default, outputs)
        number = process().log_variance(None, 0, -1, like=like[:1], kind=kind)
        assert torch.allclose(number, default[:1], rtol=1e-6)
        other = process().log_variance(None, 0, -1, 20, like=like[:1], kind=kind)
        assert (other - number).abs().min() > 0.1


def test_learned_is_the_logarithm_itself():
    spread = normal(3)(torch.empty(4, 2, 6))
    log = process("learned").log_variance(spread, STEPS, STEPS - 1, like=spread)
    assert torch.equal(log, spread)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_process_of_one_step_has_a_finite_variance(variance):
    one = GaussianDiffusion(cosine(num_steps=1), PredX0(), variance=variance)
    for steps in ((0, -1), (torch.zeros(2, dtype=torch.int64), torch.full((2,), -1))):
        log = one.log_variance(None, *steps, like=torch.zeros(2, 1, 3))
        assert log.flatten().tolist() == pytest.approx([math.log(0.999)] * 6, rel=1e-5)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_the_network_has_twice_the_output_channels(variance):
    for spatial in ((6,), (3, 4), (2, 3, 2)):
        _, _, answer = batch(spatial=spatial)
        diffusion = process(variance)
        assert diffusion.learns_variance
        assert diffusion.output_channels(2) == 4
        x_t = normal(5)(torch.empty(4, 2, *spatial))
        prediction = Denoiser(lambda x, time, answer=answer: answer, diffusion)(x_t, STEPS)
        assert torch.equal(prediction.variance_output, answer[:, 2:])
        fixed = process("fixed_small", "simple")
        plain = Denoiser(lambda x, time, answer=answer: answer[:, :2], fixed)(x_t, STEPS)
        assert torch.equal(prediction.x0, plain.x0)
        assert torch.equal(prediction.eps, plain.eps)
        assert plain.variance_output is None
        assert fixed.output_channels(2) == 2


@pytest.mark.parametrize("objective", [PredNoise, PredX0, PredV])
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_hybrid_is_the_simple_loss_plus_the_weighted_bound(objective, variance):
    x0, noise, answer = batch()
    diffusion = process(variance, objective=objective, vlb_weight=0.02)
    loss = DiffusionLoss(diffusion)(lambda x, time: answer, x0, STEPS, noise)
    simple = process("fixed_small", "simple", objective)
    expected = DiffusionLoss(simple)(lambda x, time: answer[:, :2], x0, STEPS, noise)
    x_t = diffusion.diffuse(x0, STEPS, noise)
    prediction = Denoiser(lambda x, time: answer, diffusion)(x_t, STEPS)
    term = bound_term(diffusion, prediction, x0, STEPS)
    assert loss.shape == (4,)
    torch.testing.assert_close(loss, expected + 0.02 * T * term)
    assert (term > 0).all()


def test_the_weight_of_the_bound_is_a_thousandth_by_default():
    assert process().loss_options.vlb_weight == 0.001


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_vlb_is_T_terms(variance):
    x0, noise, answer = batch()
    diffusion = process(variance, "vlb", vlb_weight=7.0)  # which is not for this loss
    answer = answer if diffusion.learns_variance else answer[:, :2]
    loss = DiffusionLoss(diffusion)(lambda x, time: answer, x0, STEPS, noise)
    x_t = diffusion.diffuse(x0, STEPS, noise)
    prediction = Denoiser(lambda x, time: answer, diffusion)(x_t, STEPS)
    term = bound_term(diffusion, prediction, x0, STEPS)
    torch.testing.assert_close(loss, T * term, rtol=1e-6, atol=0)


def gradient(diffusion, x0, noise, answer):
    """Return the gradients of the loss in both halves of the output, mean and variance."""
    answer = answer.clone().requires_grad_()
    DiffusionLoss(diffusion)(lambda x, time: answer, x0, STEPS, noise).sum().backward()
    return answer.grad.chunk(2, dim=1)


@pytest.mark.parametrize("objective", [PredNoise, PredX0, PredV])
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_hybrid_loss_trains_mean_and_variance_separately(objective, variance):
    x0, noise, answer = batch()
    hybrid = process(variance, "hybrid", objective, vlb_weight=0.5)
    mean, spread = gradient(hybrid, x0, noise, answer)
    simple = process("fixed_small", "simple", objective)
    half = answer[:, :2].clone().requires_grad_()
    DiffusionLoss(simple)(lambda x, time: half, x0, STEPS, noise).sum().backward()
    assert torch.equal(mean, half.grad)  # nothing of the bound
    of_mean, of_spread = gradient(process(variance, "vlb", objective), x0, noise, answer)
    torch.testing.assert_close(
        spread, 0.5 * of_spread, rtol=1e-4, atol=1e-10
    )  # nothing of the simple loss
    for half in (of_mean, of_spread):  # but where the decoder gives a bin less than 1e-12
        assert half.abs().amax(dim=(1, 2))[1:].min() > 0


def test_bound_trains_the_variance_to_that_of_the_errors():
    """At the optimum of a KL the variance is that of the posterior plus the squared mean error."""
    x0, noise, _ = batch()
    diffusion = process("learned", "vlb", PredX0)
    t = torch.full((4,), 12)
    x_t = diffusion.diffuse(x0, t, noise)
    right, wrong = (diffusion.posterior(clean, x_t, t, t - 1)[0] for clean in (x0, x0 + 0.2))
    error = float((wrong - right)[0, 0, 0])
    best = math.log(diffusion.posterior_variance(12, 11) + error**2)
    spread = torch.full_like(x0, best).requires_grad_()
    answer = torch.cat([x0 + 0.2, spread], dim=1)
    DiffusionLoss(diffusion)(lambda x, time: answer, x0, t, noise).sum().backward()
    assert spread.grad.abs().max() < 1e-4 * T
    off = torch.full_like(x0, best + 0.1).requires_grad_()
    answer = torch.cat([x0 + 0.2, off], dim=1)
    DiffusionLoss(diffusion)(lambda x, time: answer, x0, t, noise).sum().backward()
    assert off.grad.min() > 1e-3 * T  # too large: the gradient reduces it


@pytest.mark.parametrize("loss", ["hybrid", "vlb"])
def test_self_conditioning_passes_x0_without_the_variance(loss):
    x0, noise, answer = batch()
    diffusion = process("learned_range", loss, PredV, self_condition=True)
    previous = []

    def network(x_t, time, x_self_cond):
        previous.append(x_self_cond)
        return answer + 0.1 * x_self_cond.repeat(1, 2, 1)

    value = DiffusionLoss(diffusion)(network, x0, STEPS, noise, estimator=network)
    x_t = diffusion.diffuse(x0, STEPS, noise)
    a, s = SCHEDULE.scales(STEPS, x0)
    assert [tuple(x.shape) for x in previous] == [(4, 2, 6)] * 2
    assert not previous[0].any()
    torch.testing.assert_close(previous[1], a * x_t - s * answer[:, :2])
    final = answer + 0.1 * previous[1].repeat(1, 2, 1)
    plain = process("learned_range", loss, PredV)
    torch.testing.assert_close(value, DiffusionLoss(plain)(lambda x, time: final, x0, STEPS, noise))


def test_a_denoiser_clips_x0_and_leaves_the_variance_alone():
    x_t, _, answer = batch()
    prediction = Clipping(Denoiser(lambda x, time: 5 * answer, process()))(x_t, 30)
    assert prediction.x0.abs().max() == 1
    assert torch.equal(prediction.variance_output, 5 * answer[:, 2:])


NOT_TRAINED = "does not train a learned variance; use hybrid or vlb, or a fixed variance"
REFUSED = [
    ({"variance": "learned"}, f"loss=simple: {NOT_TRAINED}"),
    ({"variance": "learned_range"}, f"loss=simple: {NOT_TRAINED}"),
    *(
        (
            {"variance": kind, "loss": "hybrid"},
            f"loss=hybrid: requires a learned variance, but variance={kind}; use simple or vlb",
        )
        for kind in ("fixed_small", "fixed_large")
    ),
    *(
        (
            {"variance": "learned_range", "loss": loss, "offset_noise": 0.1},
            "offset_noise=0.1: is not part of the variational bound; set it to 0, or use "
            "loss=simple",
        )
        for loss in ("hybrid", "vlb")
    ),
    (
        {"vlb_weight": 0.0},
        "vlb_weight=0.0: must be above 0; use loss=simple to train without the bound",
    ),
    ({"bin_width": 0.0}, "bin_width=0.0: must be above 0 and at most 2"),
    ({"bin_width": 2.1}, "bin_width=2.1: must be above 0 and at most 2"),
]


@pytest.mark.parametrize(("options", "line"), REFUSED)
def test_invalid_options_are_rejected(options, line):
    with pytest.raises(ConfigError) as caught:
        GaussianDiffusion(linear(num_steps=50), PredNoise(), **options)
    assert str(caught.value) == line


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize("loss", ["simple", "hybrid", "vlb"])
def test_valid_combinations(variance, loss):
    learned = variance.startswith("learned")
    if loss == "vlb" or (loss == "hybrid") == learned:
        x0, noise, answer = batch()
        diffusion = process(variance, loss)
        answer = answer[:, : diffusion.output_channels(2)]
        value = DiffusionLoss(diffusion)(lambda x, time: answer, x0, STEPS, noise)
        assert value.shape == (4,)
        assert torch.isfinite(value).all()
    else:
        with pytest.raises(ConfigError):
            process(variance, loss)
