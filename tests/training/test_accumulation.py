"""Choice of the gradient accumulation steps: trials, agreement of processes, no effect on a run."""

import weakref

import pytest
import torch

from ddpm.errors import ConfigError
from ddpm.training import accumulation
from ddpm.training.batch_loader import BatchOptions
from ddpm.training.trainer import GradientDecision
from tests.training.test_trainer import Fit, trainer


def short_of_memory(training, limit):
    """Let a gradient of more than ``limit`` items fail; return the sizes that are tried."""
    sizes, gradient = [], training.gradient

    def limited(batch, micro=0):
        sizes.append(len(batch[0]))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return gradient(batch, micro)

    training.gradient = limited
    return sizes


@pytest.mark.parametrize(
    ("batch_size", "limit", "sizes", "line"),
    [
        (8, 100, [8], "1 (a micro-batch of 8 items fits into the GPU's memory)"),
        (8, 3, [8, 4, 2], "4 (a micro-batch of 2 items fits into the GPU's memory, one of 4 "
         "does not)"),
        (12, 5, [12, 6, 4], "3 (a micro-batch of 4 items fits into the GPU's memory, one of "
         "6 does not)"),
        (7, 6, [7, 1], "7 (a micro-batch of 1 item fits into the GPU's memory, one of 7 does "
         "not)"),
    ],
)  # fmt: skip
def test_the_largest_divisor_that_fits_is_used(batch_size, limit, sizes, line):
    training = trainer(batch_size=batch_size, accumulate="auto")
    tried = short_of_memory(training, limit)
    assert accumulation.choose(training, tries=True) == f"accumulate: {line}"
    assert tried == sizes and training.accumulate == batch_size // sizes[-1]
    assert training.accelerator.gradient_accumulation_steps == training.accumulate
    batch, _ = next(training.loader.batches(0))
    assert len(batch) == training.loader.micro_batch_size == sizes[-1]


def test_a_single_item_that_does_not_fit():
    training = trainer(accumulate="auto")
    assert short_of_memory(training, 0) == []
    with pytest.raises(ConfigError) as caught:
        accumulation.choose(training, tries=True)
    assert str(caught.value) == (
        "trainer.accumulate=auto: not even one item per micro-batch fits into the memory of the "
        "GPU, beside the weights and the state of the optimizer; use trainer.precision=bf16, a "
        "smaller network, or smaller data"
    )


def test_other_errors_are_raised():
    def fail(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    training = trainer(accumulate="auto")
    training.gradient = fail
    with pytest.raises(RuntimeError, match="device-side assert"):
        accumulation.choose(training, tries=True)


def test_nothing_is_tried_on_a_cpu():
    training = trainer(accumulate="auto")
    assert short_of_memory(training, 0) == []
    assert accumulation.choose(training) == (
        "accumulate: 1 (not tried: a CPU does not report that memory is short)"
    )
    assert training.accumulate == 1


def state(training):
    """Return all tensors of a training, and the random state."""
    networks = training.network.state_dict(), training.ema.model.state_dict()
    moments = [m for each in training.optimizer.state.values() for m in each.values()]
    tensors = [*networks[0].values(), *networks[1].values(), *moments, torch.get_rng_state()]
    return [tensor.clone() for tensor in tensors]


def take_steps(training, count):
    batches = training.loader.batches(training.samples)
    for _ in range(count):
        training.accumulate_gradient(batches)
        training.apply_gradient(GradientDecision(use=True, counts=True))


@pytest.mark.parametrize("steps", [0, 2])
def test_a_trial_has_no_effect_on_the_run(steps):
    """The run equals one with the same explicit number, bit for bit."""
    expected = trainer(accumulate=4, lr=1e-2)
    take_steps(expected, 4)
    training = trainer(accumulate="auto", lr=1e-2)
    training.divide_batch(4)
    take_steps(training, steps)
    before, counters = state(training), (training.step, training.samples, training.num_updates)
    short_of_memory(training, 3)
    accumulation.choose(training, tries=True)
    assert all(map(torch.equal, state(training), before))
    assert (training.step, training.samples, training.num_updates) == counters
    assert all(parameter.grad is None for parameter in training.network.parameters())
    take_steps(training, 4 - steps)
    assert torch.equal(training.network.values(), expected.network.values())
    assert torch.equal(training.ema.model.values(), expected.ema.model.values())


def test_memory_of_the_optimizer_and_a_margin_are_reserved(monkeypatch):
    """The network has two parameters: a weight and a bias."""
    training = trainer(accumulate="auto")

    def numbers(accumulate):
        return sum(each.numel() for each in accumulation._reserved(training, accumulate))

    assert (numbers(1), numbers(2)) == (4, 6)
    take_steps(training, 1)
    assert (numbers(1), numbers(2)) == (0, 2)  # the moments are there
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 8 * 2**30))
    assert accumulation._margin(torch.device("cuda")) == 8 * 2**30 // 20


def test_memory_of_a_trial_is_freed_before_the_next(monkeypatch):
    """The frames of an error hold its tensors."""
    references, real = [], accumulation._reserved

    def reserved(*arguments):
        assert all(each() is None for each in references)
        tensors = real(*arguments)
        references.extend(map(weakref.ref, tensors))
        return tensors

    monkeypatch.setattr(accumulation, "_reserved", reserved)
    training = trainer(accumulate="auto")
    short_of_memory(training, 1)
    accumulation.choose(training, tries=True)
    assert training.accumulate == 8 and len(references) == (4 + 1) + 3 * (6 + 1)


def test_the_most_expensive_micro_batch_is_tried():
    training = trainer(Fit(self_condition=True), accumulate="auto")
    accumulation.choose(training, tries=True)
    assert [call["estimator"] is None for call in training.loss.calls] == [False]


def test_one_item_is_read_for_a_trial():
    training, read = trainer(accumulate="auto"), []
    fetch = training.data.fetch
    training.data.fetch = lambda indices, keys: read.append(len(indices)) or fetch(indices, keys)
    raw, labels = training.loader.repeated(0, 5)
    assert read == [1] and len(raw) == 5 and (raw == raw[:1]).all() and labels is None


@pytest.mark.parametrize("value", ["auto", 1, 3])
def test_values(value):
    options = BatchOptions(accumulate=value)
    assert options.first_accumulate == (1 if value == "auto" else value)
    with pytest.raises(ConfigError, match=r"^accumulate=0: must be auto, or at least 1"):
        BatchOptions(accumulate=0)


def test_the_answer_of_another_process_counts(monkeypatch):
    answers = iter([[True, False], [True, True]])
    monkeypatch.setattr(accumulation, "gather", lambda *_: next(answers))
    training = trainer(accumulate="auto")
    accumulation.choose(training, tries=True)
    assert training.accumulate == 2
