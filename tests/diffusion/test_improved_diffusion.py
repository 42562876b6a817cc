"""Comparison of the process with improved-diffusion, in four cases."""

import functools
import math

import pytest
import torch

from ddpm.diffusion import (
    Clipping,
    Denoiser,
    DiffusionLoss,
    GaussianDiffusion,
    bound_term,
    discretised_log_likelihood,
    prior_term,
)
from ddpm.evaluation.bits_per_dimension import bits_per_dimension
from ddpm.samplers.grids import respaced_timesteps
from tests.diffusion.iddpm_cases import LEARNED, NAMES, assert_near, iddpm_case


@pytest.mark.parametrize("name", NAMES)
def test_forward_process_and_network_time(name):
    case = iddpm_case(name)
    times = Denoiser(case.network, case.diffusion).network_time(case.t, case["x_t"]).float()
    assert torch.equal(times, case["timesteps_given_to_network"])
    assert_near(case.diffusion.diffuse(case["x0"], case.t, case["noise"]), case["x_t"])


@pytest.mark.parametrize("name", NAMES)
def test_the_posterior(name):
    case = iddpm_case(name)
    process, like = case.diffusion, case["x_t"]
    mean, variance = process.posterior(case["x0"], like, case.t, case.s)
    assert_near(mean, case["posterior_mean"])
    assert_near(variance.expand_as(like), case["posterior_variance"])
    log = process.log_variance(None, case.t, case.s, case.after, like=like, kind="fixed_small")
    assert_near(log, case["posterior_log_variance"], 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("clip", "end"), [(True, ""), (False, "_unclipped")])
def test_the_reverse_step(name, clip, end):
    case = iddpm_case(name)
    process, prediction = case.diffusion, case.prediction(clip=clip)
    assert_near(prediction.x0, case[f"pred_x0{end}"])
    mean, _ = process.posterior(prediction.x0, case["x_t"], case.t, case.s)
    assert_near(mean, case[f"mean{end}"])
    log = process.log_variance(
        prediction.variance_output, case.t, case.s, case.after, like=case["x_t"]
    )
    assert log.dtype == torch.float32
    assert_near(log, case["log_variance"], 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_integers_and_tensors_give_equal_results(name):
    """Samplers use integers, losses use tensors."""
    case = iddpm_case(name)
    process, prediction = case.diffusion, case.prediction(clip=True)
    for row, pair in enumerate(zip(case.t, case.s, case.after, strict=True)):
        t, s, after = (int(step) for step in pair)
        x0, x_t = prediction.x0[row : row + 1], case["x_t"][row : row + 1]
        variance_output = prediction.variance_output
        variance_output = None if variance_output is None else variance_output[row : row + 1]
        mean, _ = process.posterior(x0, x_t, t, s)
        assert_near(mean, case["mean"][row : row + 1])
        log = process.log_variance(variance_output, t, s, after, like=x_t)
        assert_near(log, case["log_variance"][row : row + 1], 1e-6)
        small = process.log_variance(None, t, s, after, like=x_t, kind="fixed_small")
        assert_near(small, case["posterior_log_variance"][row : row + 1], 1e-6)


def kl_in_float64(case):
    """Return the terms of the bound, (B,) in bits per dimension, without cancellation."""
    process, prediction = case.diffusion, case.prediction(clip=True)
    tables = (process.schedule.alpha_bar_at(step, case["x0"]) for step in (case.t, case.s))
    at, as_ = tables
    weight = as_.sqrt() * (1 - at / as_) / (1 - at)
    away = weight * (prediction.x0.double() - case["x0"].double())
    small, large = (1 - at / as_) * (1 - as_) / (1 - at), 1 - at / as_
    if prediction.variance_output is None:
        log = large.log().expand_as(away)
    else:
        share = (prediction.variance_output.double() + 1) / 2
        log = share * large.log() + (1 - share) * small.log()
    ratio = small.log() - log
    kl = 0.5 * (torch.expm1(ratio) - ratio + away**2 * torch.exp(-log))
    return kl.flatten(1).mean(1) / math.log(2)


@pytest.mark.parametrize("name", NAMES)
def test_the_terms_of_the_bound(name):
    """The original's terms below 1e-6 have rounding errors of up to a third in float32.

    It computes ``-1 + a - b + exp(b - a)``, ours expm1: the reference is then float64.
    """
    case = iddpm_case(name)
    prediction, steps = case.prediction(clip=True), (case.t, case.s, case.after)
    term = bound_term(case.diffusion, prediction, case["x0"], *steps)
    assert_near(term[case.s < 0, None], case["vb_bpd"][case.s < 0, None])
    exact, is_kl = kl_in_float64(case), case.s >= 0
    assert is_kl.sum() == 4
    assert_near(term[is_kl, None], exact[is_kl, None], 3e-4)
    ordinary = is_kl & (exact > 1e-5)
    assert_near(term[ordinary, None], case["vb_bpd"][ordinary, None], 3e-5)
    assert_near(term[ordinary, None], exact[ordinary, None])
    tiny = is_kl & (exact < 1e-6)
    if name == "respaced":
        assert not tiny.any()
    else:
        off = (case["vb_bpd"][tiny] / exact[tiny] - 1).abs()
        assert off.max() > 0.02
        assert (term[tiny] / exact[tiny] - 1).abs().max() < off.max() / 100


@pytest.mark.parametrize("name", NAMES)
def test_the_prior(name):
    case = iddpm_case(name)
    prior = prior_term(case.diffusion, case["x0"], case.last)
    if case.last == case.diffusion.num_steps - 1:
        assert torch.equal(prior, prior_term(case.diffusion, case["x0"]))
    alpha_bar = case.diffusion.schedule.alpha_bar[case.last]
    log = torch.log(1 - alpha_bar)
    exact = 0.5 * (torch.expm1(log) - log + alpha_bar * case["x0"].double() ** 2)
    assert_near(prior[:, None], exact.flatten(1).mean(1)[:, None] / math.log(2), 1e-6)
    # The original's float32 is off by up to 6e-5 of these small numbers.
    assert_near(prior[:, None], case["prior_bpd"][:, None], 1e-4)


@pytest.mark.parametrize("name", ["fixed_large_x0", "hybrid", "vlb"])
def test_the_losses(name):
    case = iddpm_case(name)
    process = case.diffusion
    loss = DiffusionLoss(process)(case.network, case["x0"], case.t, case["noise"])
    assert_near(loss[:, None], case["loss_loss"][:, None])
    if name == "vlb":
        return
    error = (case["model_output"][:, :3] - case[{"hybrid": "noise"}.get(name, "x0")]) ** 2
    assert_near(error.flatten(1).mean(1)[:, None], case["loss_mse"][:, None])
    if name == "hybrid":
        bound = (loss - error.flatten(1).mean(1))[:, None]
        assert_near(bound, case["loss_vb"][:, None], 2e-5)


def test_the_losses_of_a_respaced_process():
    """T is then the number of retained timesteps."""
    case = iddpm_case("respaced")
    process, steps = case.diffusion, (case.t, case.s, case.after)
    term = bound_term(process, case.prediction(clip=False), case["x0"], *steps)
    bound = process.loss_options.vlb_weight * case.num_kept * term
    assert_near(bound[:, None], case["loss_vb"][:, None])
    error = ((case["model_output"][:, :3] - case["noise"]) ** 2).flatten(1).mean(1)
    assert_near(error[:, None], case["loss_mse"][:, None])
    assert_near((error + bound)[:, None], case["loss_loss"][:, None])


@pytest.mark.parametrize("name", LEARNED)
def test_the_network_has_twice_the_output_channels(name):
    case = iddpm_case(name)
    assert case.diffusion.output_channels(3) == 6
    output, variance_output = case.diffusion.split_output(case["model_output"])
    assert torch.equal(output, case["model_output"][:, :3])
    assert variance_output is not None
    assert torch.equal(variance_output, case["model_output"][:, 3:])


def walk(case, process, answer, steps):
    """Return the bound with the noise of the case at every step, and the network times."""
    times = []

    def network(x_t, time):
        times.append(time)
        return answer

    denoiser = Clipping(Denoiser(network, process))
    bound = bits_per_dimension(
        denoiser, case["x0"], randn_like=lambda x0: case["noise"], steps=steps
    )
    return bound, torch.stack(times)


@functools.cache
def all_terms(name):
    """Return the bound over all timesteps of the case."""
    case = iddpm_case(name)
    steps = respaced_timesteps(case.diffusion.num_steps, "ddim50") if name == "respaced" else None
    return walk(case, case.diffusion, case["model_output"], steps)


def assert_the_originals(case, got, expected):
    """Use the tolerance of single terms; those below 1e-6 are rounding errors of the original."""
    ordinary = (case.s < 0) | (expected > 1e-5)
    assert ordinary.sum() >= 3
    assert_near(got[ordinary, None], expected[ordinary, None], 3e-5)
    assert_near(got[:, None], expected[:, None], 0.4)


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_dimension_has_the_originals_terms_and_prior(name):
    """The file has the term of one timestep per sample."""
    case, (bound, times) = iddpm_case(name), all_terms(name)
    assert bound.terms.shape == (5, case.num_kept) == (5, len(times))
    at, rows = case["t"], torch.arange(5)
    assert torch.equal(times[at, rows].float(), case["timesteps_given_to_network"])
    assert_the_originals(case, bound.terms[rows, at], case["vb_bpd"])
    assert_near(bound.prior[:, None], case["prior_bpd"][:, None], 1e-4)


def decoder_nats(x0, mean, log):
    """In float32: the original's values in the tails are determined by rounding and its 1e-12."""
    return -discretised_log_likelihood(x0.float(), mean.float(), log.float() / 2).double()


def bound_in_float64(case):
    """Return all terms (B, K) and the prior (B,), from the original's formulas."""
    process, outputs = case.diffusion, case["model_output"].double()
    x0, noise, output = (x.double() for x in (case["x0"], case["noise"], outputs[:, :3]))
    alpha_bar = process.schedule.alpha_bar[:: process.num_steps // case.num_kept]
    at, as_ = (
        x.reshape(-1, 1, 1, 1) for x in (alpha_bar, torch.cat([torch.ones(1), alpha_bar[:-1]]))
    )
    small, large = (1 - at / as_) * (1 - as_) / (1 - at), 1 - at / as_
    small[0] = small[1]
    actual = []
    for t in range(len(alpha_bar)):
        x_t = at[t].sqrt() * x0 + (1 - at[t]).sqrt() * noise
        of_noise = (x_t - (1 - at[t]).sqrt() * output) / at[t].sqrt()
        guess = (of_noise if process.learns_variance else output).clamp(-1, 1)
        share = (outputs[:, 3:] + 1) / 2 if process.learns_variance else torch.tensor(float(t > 0))
        log = share * large[t].log() + (1 - share) * small[t].log()
        if t == 0:
            nats = decoder_nats(x0, guess, log.expand_as(x0))
        else:
            weight = as_[t].sqrt() * large[t] / (1 - at[t])
            ratio = small[t].log() - log
            away = (weight * (guess - x0)) ** 2 * torch.exp(-log)
            nats = 0.5 * (torch.expm1(ratio) - ratio + away)
        actual.append(nats.flatten(1).mean(1) / math.log(2))
    end, log = alpha_bar[-1], torch.log(1 - alpha_bar[-1])
    prior = 0.5 * (torch.expm1(log) - log + end * x0**2)
    return torch.stack(actual, dim=1), prior.flatten(1).mean(1) / math.log(2)


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_dimension_at_all_steps_and_its_total(name):
    """The files contain neither; float64 formulas, checked with the files' terms, replace them."""
    case, (bound, _) = iddpm_case(name), all_terms(name)
    terms, prior = bound_in_float64(case)
    rows = torch.arange(5)
    assert_the_originals(case, terms[rows, case["t"]], case["vb_bpd"])
    assert_near(prior[:, None], case["prior_bpd"][:, None], 1e-4)
    off = (bound.terms / terms - 1).abs()
    assert off.max() < 1e-3 and off[terms > 1e-5].max() < 2e-4 and off.mean() < 3e-5
    assert_near(bound.total[:, None], (terms.sum(1) + prior)[:, None])


def near_the_cases_steps(case):
    """Return some timesteps, among which those of the case have the same neighbours."""
    every = torch.cat([case.t, case.s, case.after])
    return every[every >= 0].unique().tolist()


def but(case, variance):
    """Return the process of the case with another variance."""
    process = case.diffusion
    return GaussianDiffusion(
        process.schedule,
        process.objective,
        variance=variance,
        loss="vlb",
        rescale_timesteps=process.rescale_timesteps,
    )


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_dimension_with_fixed_small_variances(name):
    """No case has this variance, but the files contain the means and the posterior's variance."""
    case, steps = iddpm_case(name), near_the_cases_steps(iddpm_case(name))
    bound, _ = walk(case, but(case, "fixed_small"), case["model_output"][:, :3], steps)
    names = ("posterior_mean", "mean", "posterior_log_variance", "x0")
    true, mean, log, x0 = (case[key].double() for key in names)
    kl = (true - mean) ** 2 * torch.exp(-log) / 2
    nats = torch.where((case.s < 0).reshape(-1, 1, 1, 1), decoder_nats(x0, mean, log), kl)
    expected = nats.flatten(1).mean(1) / math.log(2)
    got = bound.terms[torch.arange(5), torch.searchsorted(torch.tensor(steps), case.t)]
    assert_near(got[:, None], expected[:, None])


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_dimension_with_learned_log_variance(name):
    """With the original's log-variance the terms are the original's."""
    case, steps = iddpm_case(name), near_the_cases_steps(iddpm_case(name))
    answer = torch.cat([case["model_output"][:, :3], case["log_variance"]], dim=1)
    bound, _ = walk(case, but(case, "learned"), answer, steps)
    got = bound.terms[torch.arange(5), torch.searchsorted(torch.tensor(steps), case.t)]
    assert_the_originals(case, got, case["vb_bpd"])
    last = prior_term(case.diffusion, case["x0"], case.last)
    assert torch.equal(bound.prior, last)
