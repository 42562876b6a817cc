"""Processes and devices equal those requested, or an error is raised."""

import pytest
import torch

from ddpm.distributed import devices
from ddpm.errors import ConfigError


def error_of(*arguments, **options):
    with pytest.raises(ConfigError) as caught:
        devices.accelerator(*arguments, key="trainer.precision", **options)
    return str(caught.value)


def test_a_missing_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = "device=cuda: this machine has no GPU that torch can use; use device=auto or device=cpu"
    assert error_of("cuda", "no") == line
    assert error_of("cuda", "fp16") == line


@pytest.mark.parametrize(
    ("device", "gpu"), [("cpu", False), ("auto", False), ("cpu", True)], ids=str
)
def test_fp16_needs_a_gpu(monkeypatch, device, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    remedy = "fp16 needs a GPU; on a CPU use bf16, or no for float32"
    assert error_of(device, "fp16") == f"trainer.precision=fp16: {remedy}"


def autocast_dtype(accelerator):
    with accelerator.autocast():
        return torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype


def test_each_job_of_a_sweep_has_its_own_precision_and_accumulation():
    for precision, accumulate, dtype in (
        ("bf16", 4, torch.bfloat16),
        ("no", 1, torch.float32),
        ("bf16", 2, torch.bfloat16),
    ):
        accelerator = devices.accelerator("cpu", precision, key="p", accumulate=accumulate)
        assert accelerator.mixed_precision == precision and accelerator.device.type == "cpu"
        assert accelerator.gradient_accumulation_steps == accumulate
        assert autocast_dtype(accelerator) == dtype


def test_several_processes_on_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert error_of("auto", "no") == (
        "device=auto: the launcher started 2 processes on a machine without a GPU; add device=cpu"
    )


@pytest.mark.parametrize(
    ("workers", "gpus", "on_cpu", "backend"),
    [(None, 1, False, "nccl"), (2, 2, False, "nccl"), (2, 1, False, "gloo"), (2, 1, True, "nccl")],
)
def test_processes_that_share_a_gpu_do_not_use_nccl(
    monkeypatch, capsys, workers, gpus, on_cpu, backend
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("RANK", "0")
    if workers is not None:
        monkeypatch.setenv(devices.OWN_WORKERS, str(workers))
    assert devices._backend(on_cpu) == backend
    warning = "warning: 2 processes share 1 GPU: slower than one process per GPU, and each holds "
    assert capsys.readouterr().err == (f"{warning}the whole network\n" if backend == "gloo" else "")


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_networks_are_rejected(monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    assert error_of("cpu", "no") == (
        f"launch: {kind} is not supported: each process holds the whole network; run 'accelerate "
        "config' again without it, or launch with torchrun"
    )


def test_tasks_of_srun_without_torchrun(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert error_of("auto", "no") == (
        "launch: the launcher started 8 processes but they found 1; have it start one torchrun per "
        "node, which starts the processes"
    )


def test_deterministic_algorithms_are_set_per_job(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for deterministic in (True, False, True, False):
        devices.accelerator("cpu", "no", key="p", deterministic=deterministic)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert devices.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_variable_that_conflicts_with_the_option(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    assert error_of("cpu", "no", accumulate=2) == (
        "trainer.accumulate=2: the variable ACCELERATE_GRADIENT_ACCUMULATION_STEPS "
        "has another value; unset it"
    )
    accelerator = devices.accelerator("cpu", "no", key="p", accumulate=3)
    assert accelerator.gradient_accumulation_steps == 3
