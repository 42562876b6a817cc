"""Commands that run out of memory or disk space: a one-line error with remedies."""

import errno
import gc
import os
import weakref

import numpy as np
import pytest
import torch

import ddpm
from ddpm.cli.system_errors import shortage
from ddpm.errors import ConfigError
from ddpm.memory import is_out_of_memory, on_gpu, requested
from ddpm.samplers import Sampler
from ddpm.training import Trainer, checkpoint
from ddpm.training.optimizer import AdamW

GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1.50 GiB is free.\nProcess 7 has 77.61 GiB memory in use."
)


def gpu(*_, **__):
    raise torch.OutOfMemoryError(GPU)


def cpu(*_, **__):
    torch.empty(2**47)  # 512 TiB, more than any machine gives


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(GPU), (True, True, "2.00 GiB")),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors ..."), (True, True, None)),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), (True, True, None)),
        (RuntimeError("not enough memory: you tried to allocate 3221225472 bytes."),
         (True, False, "3.00 GiB")),
        (MemoryError("Unable to allocate 8.00 PiB for an array"), (True, False, None)),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), (True, False, None)),
        (OSError(errno.ENOSPC, "No space left on device"), (False, False, None)),
        (RuntimeError("CUDA error: device-side assert triggered"), (False, False, None)),
        (ValueError("out of memory"), (False, False, None)),
    ],
)  # fmt: skip
def test_kinds_of_errors_are_distinguished(error, expected):
    assert (is_out_of_memory(error), on_gpu(error), requested(error)) == expected


def test_the_allocators_of_torch_and_numpy_are_recognized():
    for allocate in (cpu, lambda: np.empty(2**47), lambda: bytearray(2**60)):
        with pytest.raises(Exception) as caught:
            allocate()
        assert is_out_of_memory(caught.value) and not on_gpu(caught.value), caught.value


BEGUN = "; to change trainer options of an existing run, add override=true"
BATCH = "use a smaller batch_size (with the same results)"  # precision=auto is bf16 on a GPU


def test_training(command, tiny, monkeypatch):
    monkeypatch.setattr(Trainer, "accumulate_gradient", cpu)
    ended = command("train", "name=a", *tiny)
    assert (ended.status, ended.line) == (
        1,
        "ddpm-train: trainer.batch_size=8: this machine ran out of memory (allocating 524288.00 "
        "GiB); set trainer.accumulate=2 (the same batch in smaller parts), "
        f"trainer.precision=bf16, or a smaller trainer.batch_size{BEGUN}",
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "trainer.batch_size=8: this machine ran out of memory; set trainer.acc"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "outputs/a/x"), "outputs/a/x: No space "
         "left on device; fix this and run the same command again"),
    ],
)  # fmt: skip
def test_training_from_python(monkeypatch, tmp_path, tiny, error, line):
    def fail(*_, **__):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "accumulate_gradient", fail)
    with pytest.raises(ConfigError) as caught:
        ddpm.train(["name=a", *tiny])
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("accumulate", "precision", "model", "remedies"),
    [
        (8, "bf16", {}, "a smaller trainer.batch_size"),
        (4, "bf16", {"use_checkpoint": True}, "trainer.accumulate=auto (the same batch in parts "
         "that fit), or a smaller trainer.batch_size"),
        (1, "no", {"use_checkpoint": False}, "trainer.accumulate=auto (the same batch in parts "
         "that fit), trainer.precision=bf16, model.use_checkpoint=true (a new run), or a smaller "
         "trainer.batch_size"),
        ("auto", "bf16", {}, "a higher trainer.accumulate (the same batch in smaller parts), or a "
         "smaller trainer.batch_size"),
    ],
)  # fmt: skip
def test_only_effective_remedies_are_suggested(accumulate, precision, model, remedies):
    trainer = {"batch_size": 8, "accumulate": accumulate, "precision": precision}
    message = shortage(torch.OutOfMemoryError(GPU), {"trainer": trainer, "model": model})
    what = "trainer.batch_size=8: the GPU ran out of memory (allocating 2.00 GiB); set "
    assert str(message) == f"{what}{remedies}{BEGUN}"


@pytest.mark.parametrize(
    ("batch", "accumulate", "world", "parts"),
    [(8, 1, 1, 2), (6, 2, 1, 6), (6, 1, 2, 3), (128, 1, 8, 2), (12, 2, 2, 6), (2, 1, 2, None)],
)
def test_suggested_micro_batches_divide_the_batch(monkeypatch, batch, accumulate, world, parts):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    trainer = {"batch_size": batch, "accumulate": accumulate, "precision": "no"}
    message = str(shortage(MemoryError(), {"trainer": trainer, "model": {}}))
    assert ("trainer.accumulate" in message) == (parts is not None)
    assert parts is None or f"set trainer.accumulate={parts} (" in message


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (MemoryError(), "a higher trainer.accumulate (the same batch in smaller parts)"),
        (torch.OutOfMemoryError(GPU), "trainer.accumulate=auto (the same batch in parts that fit)"),
    ],
)
def test_the_default_batch_size_has_a_remedy(error, remedy):
    trainer = {"batch_size": None, "accumulate": 1, "precision": "bf16"}
    message = str(shortage(error, {"trainer": trainer, "model": {}}))
    assert f"; set {remedy}, or a smaller trainer.batch_size{BEGUN}" in message


def test_the_remedy_works_and_a_checkpoint_is_not_called_damaged(command, tiny, monkeypatch):
    longer = ["name=a", "trainer.max_steps=4", "trainer.checkpoint_every=2"]
    with monkeypatch.context() as patch:
        step = Trainer.accumulate_gradient
        patch.setattr(
            Trainer,
            "accumulate_gradient",
            lambda self, *a: gpu() if self.step == 3 else step(self, *a),
        )
        assert command("train", *longer, *tiny).status == 1
    with monkeypatch.context() as patch:
        patch.setattr(AdamW, "load_state_dict", gpu)
        ended = command("train", "resume=outputs/a")
        assert ended.line == (
            "ddpm-train: trainer.batch_size: the GPU ran out of memory (allocating 2.00 GiB); set "
            "a higher trainer.accumulate (the same batch in smaller parts), "
            f"trainer.precision=bf16, or a smaller trainer.batch_size{BEGUN}"
        )
    ended = command("train", *longer, *tiny, "trainer.accumulate=2", "override=true")
    assert ended.status == 0, ended.err
    assert "from step 2" in ended.out


def test_sampling_interpolating_and_evaluating(command, trained, monkeypatch):
    monkeypatch.setattr(Sampler, "sample", gpu)
    for name, *options in (
        ("sample",),
        ("interpolate", "a=1", "b=2"),
        ("evaluate", "num_samples=8", "cache=null"),
    ):
        ended = command(name, f"ckpt={trained}", "steps=2", "batch_size=4", *options)
        line = f"batch_size=4: the GPU ran out of memory (allocating 2.00 GiB); {BATCH}"
        assert (ended.status, ended.err.splitlines()[-1]) == (1, f"ddpm-{name}: {line}")
        assert "Traceback" not in ended.err
    ended = command("sample", f"ckpt={trained}", "precision=bf16")
    assert ended.line.endswith("; use a smaller batch_size (with the same results)")
    monkeypatch.setattr(checkpoint.Checkpoint, "weights", cpu)  # not a mismatch
    ended = command("sample", f"ckpt={trained}")
    assert ended.line.startswith("ddpm-sample: batch_size=64: this machine ran out of memory (")
    assert ended.line.endswith(", or precision=bf16")
    ended = command("export", f"ckpt={trained}", "format=safetensors")
    remedy = "use a machine with more memory, or free some"
    assert ended.line == (
        f"ddpm-export: memory: this machine ran out of memory (allocating 524288.00 GiB); {remedy}"
    )


def test_the_next_job_of_a_sweep_has_the_memory(command, tiny, monkeypatch):
    """The memory of a job is freed, also after an out-of-memory error."""
    step, networks = Trainer.accumulate_gradient, []

    def first_fails(self, *args):
        networks.append(weakref.ref(self.network))
        if len(networks) == 1:
            gpu()
        assert all(each() is None for each in networks[:-1]), "an earlier network is in memory"
        return step(self, *args)

    monkeypatch.setattr(Trainer, "accumulate_gradient", first_fails)
    gc.disable()
    try:
        ended = command("train", "-m", "name=s", "seed=0,1,2", "trainer.max_steps=1", *tiny)
    finally:
        gc.enable()
    assert ended.status == 1 and "the GPU ran out of memory" in ended.err, ended.err
    assert len(networks) == 3, ended.err
