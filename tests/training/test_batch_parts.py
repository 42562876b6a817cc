"""Micro-batches whose parts are computed at the same time, in threads of a CPU."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ddpm.diffusion import DiffusionLoss, GaussianDiffusion, PredV, cosine
from ddpm.errors import ConfigError
from ddpm.models import UNet, UNet3D
from ddpm.training import batch_parts
from ddpm.training.batch_parts import automatic, in_parts, typed
from ddpm.training.trainer import TrainerOptions
from tests.models.small_networks import NETWORKS, make
from tests.reference_cases import relative_error
from tests.training.test_trainer import Points, trainer

CPU = SimpleNamespace(device=torch.device("cpu"), num_processes=1)


@pytest.fixture
def threads():
    """Return a function that sets the number of threads, which is restored at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def passes(network, count, x, t, **conditioning):
    """Return the output of a network, computed in parts, and the gradient of its mean square."""
    output = in_parts(network, network.parameters(), count)(x, t, **conditioning)
    weights = [each for each in network.parameters() if each.requires_grad]
    return output, torch.autograd.grad(output.square().mean(), weights, allow_unused=True)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_gradient_are_those_of_the_whole_batch(name, count, threads):
    """Also of batches that the parts do not divide, and that have fewer samples than parts."""
    threads(2)
    network, x = make(name, 3)
    assert network.train().thread_safe
    x, t = torch.randn(5, *x.shape[1:]), torch.tensor([0.0, 10.25, 300.0, 700.5, 999.0])
    labels = {"y": torch.tensor([0, 2, 1, 1, 0])}
    expected, gradient = passes(network, 1, x, t, **labels)
    output, parts = passes(network, count, x, t, **labels)
    assert relative_error(output.detach(), expected.detach()) < 1e-5
    for part, whole in zip(parts, gradient, strict=True):
        assert (part is None) == (whole is None)
        if whole is not None:
            assert (part - whole).norm() <= 1e-5 * (whole.norm() + gradient[0].norm())
    again, same = passes(network, count, x, t, **labels)
    assert torch.equal(again, output)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(same, parts, strict=True))
    with torch.no_grad():
        assert torch.equal(in_parts(network, network.parameters(), count)(x, t, **labels), output)
    assert torch.get_num_threads() == 2


def test_a_missing_input_stays_missing():
    def network(x, t, y=None, x_self_cond=None):
        assert y is None
        return x * t[:, None] + x_self_cond

    x, t, estimate = torch.randn(4, 3), torch.arange(4.0), torch.randn(4, 3)
    output = in_parts(network, [], 2)
    with torch.no_grad():
        assert torch.equal(output(x, t, y=None, x_self_cond=estimate), x * t[:, None] + estimate)


def test_the_parts_run_at_the_same_time_with_a_share_of_the_threads(threads):
    threads(4)
    numbers, weight = [], nn.Parameter(torch.ones(()))
    both_here = batch_parts.Barrier(2)

    def network(x, t):
        both_here.wait(timeout=20)  # raises if the parts came one after the other
        numbers.append(torch.get_num_threads())
        return weight * x

    passes_of = in_parts(network, [weight], 2)
    passes_of(torch.ones(4, 1), torch.zeros(4)).sum().backward()
    assert numbers == [2, 2] and weight.grad == 4 and torch.get_num_threads() == 4


def test_an_error_in_a_part_is_raised_and_the_threads_are_restored(threads):
    threads(2)

    def network(x, t):
        if t.max() > 2:
            raise ValueError("too late")
        return x

    for context in (torch.no_grad(), torch.enable_grad()):
        with context, pytest.raises(ValueError, match="too late"):
            in_parts(network, [], 2)(torch.ones(4, 1), torch.arange(4))
        assert torch.get_num_threads() == 2


def test_gradients_that_some_parts_lack():
    """Parameters that only some parts use, none use, or that share the memory of a gradient."""
    one, other, unused = (nn.Parameter(torch.tensor(float(n))) for n in (2, 3, 4))

    def network(x, t):
        return x * (one + other) if t.max() > 1 else x * one

    def gradient(count):
        output = in_parts(network, [one, other, unused], count)(torch.ones(4, 1), torch.arange(4))
        return torch.autograd.grad(output.sum(), [one, other, unused], allow_unused=True)

    assert gradient(2) == (4.0, 2.0, None)


def test_autocast_reaches_the_threads():
    network = nn.Conv2d(1, 1, 1)
    call = in_parts(lambda x, t: network(x), network.parameters(), 2)
    x, t = torch.randn(4, 1, 2, 2), torch.zeros(4)
    assert call(x, t).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        output = call(x, t)
        assert output.dtype == torch.bfloat16 and torch.equal(output, network(x))


def training(**options):
    torch.manual_seed(0)
    process = GaussianDiffusion(cosine(num_steps=10), PredV(), self_condition=True)
    shape = {"dim": 8, "dim_mults": (1,), "resnet_block_groups": 2}
    network = UNet(1, 1, (2, 2), self_condition=True, **shape)
    data = Points(64)
    return trainer(DiffusionLoss(process), network, data, batch_size=32, lr=1e-3, **options)


def gradients(made, count=4):
    """Take training steps without an update, and return the gradients."""
    batches, results = made.loader.batches(made.samples), []
    for made.step in range(count):
        made.accumulate_gradient(batches)
        results.append(torch.cat([each.grad.flatten() for each in made.network.parameters()]))
        made.optimizer.zero_grad(set_to_none=True)
    return results


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_steps_are_those_of_the_whole_batch(accumulate):
    """With self-conditioning, whose first estimate has no gradient."""
    expected = gradients(training(accumulate=accumulate, batch_parts=1))
    actual = gradients(training(accumulate=accumulate, batch_parts=2))
    assert not all(map(torch.equal, actual, expected))  # sums are rounded otherwise
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()
    assert all(map(torch.equal, actual, gradients(training(accumulate=accumulate, batch_parts=2))))


@pytest.mark.parametrize(
    ("number", "samples", "parts"),
    [
        (1, 64, 1),
        (2, 16, 2),
        (2, 15, 1),  # of fewer than 8 samples each
        (3, 64, 3),
        (4, 64, 4),
        (4, 31, 2),  # a divisor of the threads
        (6, 64, 3),
        (7, 64, 1),
        (8, 64, 4),
        (8, 4, 1),
    ],
)
def test_number_of_parts(number, samples, parts, threads):
    threads(number)
    network = UNet(1, 1, (2, 2), dim=8, dim_mults=(1,))
    assert automatic(network, samples, CPU) == parts
    for other in ({"device": torch.device("cuda")}, {"num_processes": 2}):
        assert automatic(network, samples, SimpleNamespace(**{**vars(CPU), **other})) == 1
        assert typed(2, network, SimpleNamespace(**{**vars(CPU), **other})) == 1
    dropping = UNet(1, 1, (2, 2), dim=8, dim_mults=(1,), dropout=0.1)
    assert automatic(dropping, samples, CPU) == 1
    assert typed(2, network, CPU) == 2


def test_the_trainer_chooses_for_its_threads_and_micro_batches(threads):
    threads(2)
    made = training()
    assert made.batch_parts == 1
    made.choose_batch_parts()
    assert made.batch_parts == 2
    made.divide_batch(4)
    made.choose_batch_parts()
    assert made.batch_parts == 1
    for options in ({"batch_parts": 1}, {"compile": True}):
        made = training(**options)
        made.choose_batch_parts()
        assert made.batch_parts == 1


def test_impossible_numbers():
    dropping = UNet(1, 1, (2, 2), dim=8, dim_mults=(1,), dropout=0.1)
    focusing = UNet3D(1, 1, (2, 2, 2), dim=8, dim_mults=(1,), prob_focus_present=0.1)
    for network in (dropping, focusing, nn.Conv2d(1, 1, 1)):
        with pytest.raises(ConfigError) as error:
            typed(2, network, CPU)
        assert str(error.value) == (
            "batch_parts=2: requires a network without dropout whose class sets "
            "thread_safe = True; use trainer.batch_parts=auto"
        )
        assert typed(1, network, CPU) == 1 == automatic(network, 64, CPU)
    for value, problem in ((0, "must be at least 1"), (2, "conflicts with trainer.compile=true")):
        with pytest.raises(ConfigError, match=problem):
            TrainerOptions(batch_parts=value, compile=True)
