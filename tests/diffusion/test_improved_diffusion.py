"""The process against improved-diffusion: every array of its four cases but those of DDIM."""

import functools
import math

import pytest
import torch

from ddpm.diffusion import (
    Denoiser,
    DiffusionLoss,
    GaussianDiffusion,
    bound_term,
    discretised_log_likelihood,
    prior_term,
)
from ddpm.evaluation.bits_per_dimension import bits_per_dimension
from ddpm.samplers.base import respaced_timesteps
from tests.diffusion.iddpm_cases import LEARNED, NAMES, assert_near, iddpm_case


@pytest.mark.parametrize("name", NAMES)
def test_the_forward_process_and_the_time_that_the_network_is_told(name):
    case = iddpm_case(name)
    told = case.diffusion.network_time(case.t).float()
    assert torch.equal(told, case["timesteps_given_to_network"])
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
    process, belief = case.diffusion, case.belief(clip=clip)
    assert_near(belief.x0, case[f"pred_x0{end}"])
    mean, _ = process.posterior(belief.x0, case["x_t"], case.t, case.s)
    assert_near(mean, case[f"mean{end}"])
    log = process.log_variance(belief.variance_output, case.t, case.s, case.after, like=case["x_t"])
    assert log.dtype == torch.float32
    assert_near(log, case["log_variance"], 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_whole_numbers_give_what_tensors_give(name):
    """A sampler goes by Python's numbers, the losses by tensors."""
    case = iddpm_case(name)
    process, belief = case.diffusion, case.belief(clip=True)
    for row, pair in enumerate(zip(case.t, case.s, case.after, strict=True)):
        t, s, after = (int(step) for step in pair)
        x0, x_t = belief.x0[row : row + 1], case["x_t"][row : row + 1]
        spread = None if belief.variance_output is None else belief.variance_output[row : row + 1]
        mean, _ = process.posterior(x0, x_t, t, s)
        assert_near(mean, case["mean"][row : row + 1])
        log = process.log_variance(spread, t, s, after, like=x_t)
        assert_near(log, case["log_variance"][row : row + 1], 1e-6)
        small = process.log_variance(None, t, s, after, like=x_t, kind="fixed_small")
        assert_near(small, case["posterior_log_variance"][row : row + 1], 1e-6)


def kl_in_float64(case):
    """The bound's terms, (B,) in bits per dimension, with nothing that cancels."""
    process, belief = case.diffusion, case.belief(clip=True)
    tables = (process.schedule.alpha_bar_at(step, case["x0"]) for step in (case.t, case.s))
    at, as_ = tables
    weight = as_.sqrt() * (1 - at / as_) / (1 - at)
    away = weight * (belief.x0.double() - case["x0"].double())
    small, large = (1 - at / as_) * (1 - as_) / (1 - at), 1 - at / as_
    if belief.variance_output is None:
        log = large.log().expand_as(away)
    else:
        share = (belief.variance_output.double() + 1) / 2
        log = share * large.log() + (1 - share) * small.log()
    ratio = small.log() - log
    kl = 0.5 * (torch.expm1(ratio) - ratio + away**2 * torch.exp(-log))
    return kl.flatten(1).mean(1) / math.log(2)


@pytest.mark.parametrize("name", NAMES)
def test_the_terms_of_the_bound(name):
    """The original's terms of 1e-6 and less are rounding noise of its float32, up to a third off.

    It computes ``-1 + a - b + exp(b - a)``, ours expm1: there the judge is float64.
    """
    case = iddpm_case(name)
    belief, steps = case.belief(clip=True), (case.t, case.s, case.after)
    term = bound_term(case.diffusion, belief, case["x0"], case["x_t"], *steps)
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
    """T is then the number of steps that are kept."""
    case = iddpm_case("respaced")
    process, steps = case.diffusion, (case.t, case.s, case.after)
    term = bound_term(process, case.belief(clip=False), case["x0"], case["x_t"], *steps)
    bound = process.vlb_weight * case.num_kept * term
    assert_near(bound[:, None], case["loss_vb"][:, None])
    error = ((case["model_output"][:, :3] - case["noise"]) ** 2).flatten(1).mean(1)
    assert_near(error[:, None], case["loss_mse"][:, None])
    assert_near((error + bound)[:, None], case["loss_loss"][:, None])


@pytest.mark.parametrize("name", LEARNED)
def test_the_network_answers_for_twice_the_channels(name):
    case = iddpm_case(name)
    assert case.diffusion.output_channels(3) == 6
    output, spread = case.diffusion.split_output(case["model_output"])
    assert torch.equal(output, case["model_output"][:, :3])
    assert spread is not None
    assert torch.equal(spread, case["model_output"][:, 3:])


def walk(case, process, answer, steps):
    """Its bound with the case's noise at every step, and the times that the network was told."""
    told = []

    def network(x_t, time):
        told.append(time)
        return answer

    denoiser = Denoiser(network, process)
    bound = bits_per_dimension(
        denoiser, case["x0"], randn_like=lambda x0: case["noise"], steps=steps
    )
    return bound, torch.stack(told)


@functools.cache
def whole_walk(name):
    """The walk over all steps that the case keeps."""
    case = iddpm_case(name)
    steps = respaced_timesteps(case.diffusion.num_steps, "ddim50") if name == "respaced" else None
    return walk(case, case.diffusion, case["model_output"], steps)


def assert_the_originals(case, got, expected):
    """As near as single terms are; those of 1e-6 and less are the original's rounding noise."""
    ordinary = (case.s < 0) | (expected > 1e-5)
    assert ordinary.sum() >= 3
    assert_near(got[ordinary, None], expected[ordinary, None], 3e-5)
    assert_near(got[:, None], expected[:, None], 0.4)


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_dimension_has_the_originals_terms_and_prior(name):
    """Of each sample the file has the term of one step."""
    case, (bound, told) = iddpm_case(name), whole_walk(name)
    assert bound.terms.shape == (5, case.num_kept) == (5, len(told))
    at, rows = case["t"], torch.arange(5)
    assert torch.equal(told[at, rows].float(), case["timesteps_given_to_network"])
    assert_the_originals(case, bound.terms[rows, at], case["vb_bpd"])
    assert_near(bound.prior[:, None], case["prior_bpd"][:, None], 1e-4)


def decoder_nats(x0, mean, log):
    """In float32 even so: in the tails the original's numbers are its rounding, and its 1e-12."""
    return -discretised_log_likelihood(x0.float(), mean.float(), log.float() / 2).double()


def bound_in_float64(case):
    """All terms (B, K) and the prior (B,), from the original's formulas."""
    process, said = case.diffusion, case["model_output"].double()
    x0, noise, output = (x.double() for x in (case["x0"], case["noise"], said[:, :3]))
    kept = process.schedule.alpha_bar[:: process.num_steps // case.num_kept]
    at, as_ = (x.reshape(-1, 1, 1, 1) for x in (kept, torch.cat([torch.ones(1), kept[:-1]])))
    small, large = (1 - at / as_) * (1 - as_) / (1 - at), 1 - at / as_
    small[0] = small[1]
    found = []
    for t in range(len(kept)):
        x_t = at[t].sqrt() * x0 + (1 - at[t]).sqrt() * noise
        of_noise = (x_t - (1 - at[t]).sqrt() * output) / at[t].sqrt()
        guess = (of_noise if process.learns_variance else output).clamp(-1, 1)
        share = (said[:, 3:] + 1) / 2 if process.learns_variance else torch.tensor(float(t > 0))
        log = share * large[t].log() + (1 - share) * small[t].log()
        if t == 0:
            nats = decoder_nats(x0, guess, log.expand_as(x0))
        else:
            weight = as_[t].sqrt() * large[t] / (1 - at[t])
            ratio = small[t].log() - log
            away = (weight * (guess - x0)) ** 2 * torch.exp(-log)
            nats = 0.5 * (torch.expm1(ratio) - ratio + away)
        found.append(nats.flatten(1).mean(1) / math.log(2))
    end, log = kept[-1], torch.log(1 - kept[-1])
    prior = 0.5 * (torch.expm1(log) - log + end * x0**2)
    return torch.stack(found, dim=1), prior.flatten(1).mean(1) / math.log(2)


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_dimension_at_all_steps_and_its_total(name):
    """The files have neither; float64 gives them, and it has the terms that the files have."""
    case, (bound, _) = iddpm_case(name), whole_walk(name)
    terms, prior = bound_in_float64(case)
    rows = torch.arange(5)
    assert_the_originals(case, terms[rows, case["t"]], case["vb_bpd"])
    assert_near(prior[:, None], case["prior_bpd"][:, None], 1e-4)
    off = (bound.terms / terms - 1).abs()
    assert off.max() < 1e-3 and off[terms > 1e-5].max() < 2e-4 and off.mean() < 3e-5
    assert_near(bound.total[:, None], (terms.sum(1) + prior)[:, None])


def near_the_cases_steps(case):
    """A few steps, among which the case's keep the neighbours that they have."""
    every = torch.cat([case.t, case.s, case.after])
    return every[every >= 0].unique().tolist()


def but(case, variance):
    """The case's process with another variance."""
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
    """No case has them, but the files have the means, and this variance as the posterior's."""
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
def test_bits_per_dimension_of_a_network_that_says_the_logarithm_of_its_variance(name):
    """Given the original's, it has the original's terms."""
    case, steps = iddpm_case(name), near_the_cases_steps(iddpm_case(name))
    answer = torch.cat([case["model_output"][:, :3], case["log_variance"]], dim=1)
    bound, _ = walk(case, but(case, "learned"), answer, steps)
    got = bound.terms[torch.arange(5), torch.searchsorted(torch.tensor(steps), case.t)]
    assert_the_originals(case, got, case["vb_bpd"])
    last = prior_term(case.diffusion, case["x0"], case.last)
    assert torch.equal(bound.prior, last)
