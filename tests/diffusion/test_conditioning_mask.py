"""Conditioning masks: no noise, no loss and fewer output channels."""

import pytest
import torch

from ddpm.diffusion import (
    Clipping,
    ConditioningMask,
    Denoiser,
    DiffusionLoss,
    GaussianDiffusion,
    PredNoise,
    PredV,
    PredX0,
    bound_term,
    class_conditioning,
    cosine,
    prior_term,
)
from ddpm.guidance.denoisers import ClassifierFreeGuidance
from tests.oracle import normal

SCHEDULE = cosine(num_steps=50)
STEPS = torch.tensor([0, 20, 49])
OBJECTIVES = [PredNoise, PredX0, PredV]


def mask_of(shape, channels=(), frames=0):
    """Return a mask that is True in some channels and in the first frames."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[list(channels)] = True
    mask[:, :frames] = True
    return mask


MASKS = [
    mask_of((3, 5), channels=[1]),
    mask_of((3, 5), frames=2),
    mask_of((3, 4, 2), channels=[0, 2], frames=1),
    mask_of((3, 4, 2, 2), channels=[0], frames=3),
]


def batch(mask, seed=0):
    x0, noise = normal(seed)(torch.empty(2, 3, *mask.shape))
    return x0, noise


def test_an_empty_mask_changes_nothing():
    conditioning, x = ConditioningMask(), normal(0)(torch.empty(2, 3, 4))
    assert not conditioning
    assert conditioning.channels == []
    assert conditioning.apply(x, x + 1) is x
    assert conditioning.select_generated(x) is x
    assert conditioning.merge(x + 2, x).equal(x + 2)
    torch.testing.assert_close(conditioning.masked_mean(x), x.flatten(1).mean(1))


@pytest.mark.parametrize("mask", MASKS)
def test_conditioning_and_generated_entries(mask):
    conditioning = ConditioningMask(mask)
    assert conditioning
    x, clean = batch(mask)
    applied = conditioning.apply(x, clean)
    assert torch.equal(applied, torch.where(mask, clean, x))
    whole = [channel for channel in range(3) if mask[channel].all()]
    free = [channel for channel in range(3) if channel not in whole]
    assert conditioning.channels == whole
    assert torch.equal(conditioning.select_generated(x), x[:, free])
    back = conditioning.merge(conditioning.select_generated(clean), x)
    assert torch.equal(back[:, free], clean[:, free])
    assert torch.equal(back[:, whole], x[:, whole])
    counts = [~mask[channel].expand(x.shape[2:]) for channel in free]
    expected = torch.stack(
        [
            torch.cat([row[channel][where] for channel, where in zip(free, counts, strict=True)])
            for row in x
        ]
    ).mean(1)
    torch.testing.assert_close(conditioning.masked_mean(conditioning.select_generated(x)), expected)


def test_a_mask_broadcasts_over_spatial_axes():
    x, clean = batch(torch.zeros(3, 4, 5))
    narrow, wide = torch.tensor([True, False, False]).reshape(3, 1, 1), torch.zeros(3, 4, 5)
    wide[0] = 1
    for left, right in ((narrow, wide.bool()), (mask_of((3, 4, 1), frames=2), None)):
        right = left.expand(3, 4, 5).clone() if right is None else right
        assert torch.equal(
            ConditioningMask(left).apply(x, clean), ConditioningMask(right).apply(x, clean)
        )
        assert ConditioningMask(left).channels == ConditioningMask(right).channels
        part = ConditioningMask(left).select_generated(x)
        torch.testing.assert_close(
            ConditioningMask(left).masked_mean(part), ConditioningMask(right).masked_mean(part)
        )


@pytest.mark.parametrize("mask", MASKS)
def test_conditioning_entries_get_no_noise(mask):
    x0, noise = batch(mask)
    with_mask = GaussianDiffusion(SCHEDULE, PredNoise(), mask)
    plain = GaussianDiffusion(SCHEDULE, PredNoise()).diffuse(x0, STEPS, noise)
    assert torch.equal(with_mask.diffuse(x0, STEPS, noise), torch.where(mask, x0, plain))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("variance", "loss"),
    [("fixed_small", "simple"), ("learned_range", "hybrid"), ("fixed_large", "vlb")],
)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_conditioning_entries_have_no_loss_and_no_gradient(mask, variance, loss, objective):
    """The loss is that of a process of the generated entries only."""
    x0, noise = batch(mask)
    process = GaussianDiffusion(SCHEDULE, objective(), mask, variance=variance, loss=loss)
    free = [channel for channel in range(3) if not mask[channel].all()]
    width = process.output_channels(3)
    assert width == len(free) * (2 if process.learns_variance else 1)
    answer = normal(7)(torch.empty(3, width, *mask.shape[1:])).requires_grad_()
    value = DiffusionLoss(process)(lambda x, time: answer, x0, STEPS, noise)
    value.sum().backward()
    counted = ~mask[free]
    halves = answer.split(len(free), dim=1)
    for grad in answer.grad.split(len(free), dim=1):
        assert not grad[:, ~counted].any()
        if loss == "simple":
            assert (grad[:, counted] != 0).all()
    alone = GaussianDiffusion(SCHEDULE, objective(), variance=variance, loss=loss)
    flat = torch.stack([half.detach()[:, counted] for half in halves], dim=1)
    rest = [x[:, free][:, counted][:, None] for x in (x0, noise)]
    expected = DiffusionLoss(alone)(lambda x, time: flat, rest[0], STEPS, rest[1])
    torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("mask", MASKS)
def test_output_at_conditioning_entries_is_ignored(mask):
    x0, noise = batch(mask)
    process = GaussianDiffusion(SCHEDULE, PredV(), mask)
    answer = normal(8)(process.conditioning_mask.select_generated(x0))
    other = torch.where(process.conditioning_mask.select_generated(mask[None]), answer + 9, answer)
    networks = [lambda x, time, output=output: output for output in (answer, other)]
    first, second = (DiffusionLoss(process)(network, x0, STEPS, noise) for network in networks)
    assert torch.equal(first, second)
    x_t = process.diffuse(x0, STEPS, noise)
    first, second = (Denoiser(network, process)(x_t, STEPS).x0 for network in networks)
    assert torch.equal(first[:, mask], x0[:, mask]) and torch.equal(first, second)


@pytest.mark.parametrize("mask", MASKS)
def test_bound_and_prior_exclude_conditioning_entries(mask):
    x0, noise = batch(mask)
    process, alone = (GaussianDiffusion(SCHEDULE, PredX0(), of) for of in (mask, None))
    free = [channel for channel in range(3) if not mask[channel].all()]
    counted = ~mask[free]
    rest = x0[:, free][:, counted][:, None]
    torch.testing.assert_close(prior_term(process, x0), prior_term(alone, rest), rtol=1e-5, atol=0)
    x_t, guess = process.diffuse(x0, STEPS, noise), 0.5 * x0
    output = process.conditioning_mask.select_generated(guess)
    prediction = Denoiser(lambda x, time: output, process)(x_t, STEPS)
    rest_t = x_t[:, free][:, counted][:, None]
    small = Denoiser(lambda x, time: 0.5 * rest, alone)(rest_t, STEPS)
    ours = bound_term(process, prediction, x0, STEPS)
    theirs = bound_term(alone, small, rest, STEPS)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("clip", ["none", "static", "dynamic"])
def test_a_denoiser_predicts_the_conditioning_entries_exactly(mask, clip):
    x0, noise = batch(mask)
    x0 = 3 * x0  # beyond the bounds: conditioning entries are not clipped
    process = GaussianDiffusion(SCHEDULE, PredV(), mask)
    x_t = process.diffuse(x0, torch.full((3,), 30), noise)
    answer = normal(9)(process.conditioning_mask.select_generated(x0))
    prediction = Clipping(Denoiser(lambda x, time: answer, process), clip)(x_t, 30)
    assert prediction.x0.shape == prediction.eps.shape == x0.shape
    assert torch.equal(prediction.x0[:, mask], x0[:, mask])
    if clip == "static":
        assert prediction.x0[:, ~mask].abs().max() <= 1


@pytest.mark.parametrize("mask", MASKS)
def test_guidance_sees_the_conditioning_entries_and_keeps_them(mask):
    x0, noise = batch(mask)
    process = GaussianDiffusion(SCHEDULE, PredNoise(), mask)
    x_t = process.diffuse(x0, torch.full((3,), 30), noise)

    def network(x, time, y):
        assert torch.equal(x, torch.cat([x_t, x_t]))
        return (
            0.1
            * y.reshape(-1, *[1] * mask.ndim)
            * torch.ones_like(process.conditioning_mask.select_generated(x))
        )

    guided = ClassifierFreeGuidance(Denoiser(network, process), scale=3.0)
    labels = class_conditioning(torch.tensor([1, 2, 3]), 4)
    prediction = guided(x_t, 30, conditioning=labels)
    assert torch.equal(prediction.x0[:, mask], x0[:, mask])
    a, s = SCHEDULE.signal_noise(30)
    for row, label in enumerate((1, 2, 3)):
        expected = (x_t[row] - s * (0.4 + 3 * 0.1 * (label - 4))) / a
        torch.testing.assert_close(prediction.x0[row][~mask], expected[~mask], rtol=1e-4, atol=1e-5)


def test_self_conditioning_input_has_the_conditioning_entries():
    mask = MASKS[2]
    x0, noise = batch(mask)
    process = GaussianDiffusion(SCHEDULE, PredV(), mask, self_condition=True)
    inputs = []

    def network(x_t, time, x_self_cond):
        inputs.append(x_self_cond)
        return process.conditioning_mask.select_generated(x_t)

    DiffusionLoss(process)(network, x0, STEPS, noise, estimator=network)
    assert not inputs[0].any()
    assert inputs[1].shape == x0.shape
    assert torch.equal(inputs[1][:, mask], x0[:, mask])


def test_tensors_cached_during_sampling_can_be_used_in_training():
    """Autograd cannot save an inference tensor; the ``meta`` device replaces a GPU."""
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[0], mask[1, 0] = True, True
    schedule = cosine(num_steps=50)
    process = GaussianDiffusion(schedule, PredX0(), mask, loss="vlb")
    x0 = torch.zeros(4, 2, 3, device="meta")
    t = torch.zeros(4, dtype=torch.int64, device="meta")
    with torch.inference_mode():
        process.diffuse(x0, t, x0)
        process.conditioning_mask.merge(process.conditioning_mask.select_generated(x0), x0)
    copies = [*process.conditioning_mask._copies.values(), schedule._tables[torch.device("meta")]]
    assert len(copies) == 3
    assert all(each.is_meta and not each.is_inference() for each in copies)
    answer = torch.zeros(4, 1, 3, device="meta", requires_grad=True)
    DiffusionLoss(process)(lambda *_: answer, x0, t, x0).sum().backward()
    assert answer.grad is not None
