"""Processes that a command starts: their number, errors, and equal results."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from ddpm.cli.workers import Launch, count, reject_sweep
from ddpm.errors import ConfigError


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "DDPM_WORKERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("processes", "device", "gpus", "expected"),
    [
        (1, "auto", 0, 1),
        (1, "auto", 8, 1),
        (2, "auto", 0, 2),
        (2, "cpu", 1, 2),
        (4, "auto", 8, 4),
        ("auto", "auto", 0, 1),
        ("auto", "auto", 8, 8),
        ("auto", "cpu", 8, 1),
        (2, "cuda", 1, 2),  # they share it
    ],
)
def test_number_of_processes(monkeypatch, processes, device, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert count(Launch(processes=processes), device) == expected


@pytest.mark.parametrize(
    ("processes", "gpus", "line"),
    [
        (0, 0, "launch.processes=0: must be at least 1, or auto for one per GPU"),
        (-1, 8, "launch.processes=-1: must be at least 1, or auto for one per GPU"),
        (
            9,
            8,
            "launch.processes=9: this machine has 8 GPUs; use fewer, or device=cpu; device=cuda "
            "shares them",
        ),
    ],
)
def test_invalid_numbers_of_processes(monkeypatch, processes, gpus, line):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError) as caught:
        count(Launch(processes=processes), "auto")
    assert str(caught.value) == line


def test_a_launcher_starts_no_more_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert count(Launch(), "auto") == 1
    with pytest.raises(ConfigError) as caught:
        count(Launch(processes=2), "auto")
    message = "launch.processes=2: the launcher has started the processes; leave it out"
    assert str(caught.value) == message
    monkeypatch.setenv("DDPM_WORKERS", "2")  # by this command
    assert count(Launch(processes=2), "auto") == 1


@pytest.mark.parametrize("flag", ["-m", "--multirun", "--multi", "hydra.mode=MULTIRUN"])
def test_a_sweep_inside_a_launcher_is_rejected(monkeypatch, flag):
    reject_sweep([flag, "seed=1,2"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    reject_sweep(["seed=1"])
    with pytest.raises(ConfigError) as caught:
        reject_sweep([flag, "seed=1,2"])
    assert str(caught.value) == (
        "-m: a sweep inside a launcher would run every job in every process; start the sweep "
        "without the launcher and add launch.processes=N"
    )


@pytest.mark.slow
def test_an_error_is_printed_once_and_leaves_no_folder(command, tiny):
    """Both workers detect it, before and after they are connected."""
    for option, line in (
        ("trainer.max_steps=0", "trainer.max_steps=0: must be at least 1"),
        (
            "trainer.batch_size=7",
            "trainer.batch_size=7: must be a multiple of 2 (accumulate 1 x 2 processes)",
        ),
    ):
        ended = command("train", "name=x", *tiny, "launch.processes=2", option)
        assert ended.status == 1 and ended.line == f"ddpm-train: {line}"
    assert not Path("outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_three_processes_resume_to_the_bits_of_an_uninterrupted_run(command, tiny, accumulate):
    """The sum of three gradients depends on their arrangement, see ``Trainer.warm_up_ddp``."""
    options = (
        "launch.processes=3",
        "diffusion.self_condition=true",
        f"trainer.accumulate={accumulate}",
        *tiny,
        "trainer.batch_size=12",
    )
    assert command("train", "name=whole", "trainer.max_steps=8", *options).status == 0
    assert command("train", "name=cut", "trainer.max_steps=4", *options).status == 0
    assert command("train", "name=cut", "trainer.max_steps=8", *options).status == 0
    names = ("model.safetensors", "ema.safetensors")
    digests = [
        [
            hashlib.sha256(
                Path(f"outputs/{run}/checkpoints/step-00000008", n).read_bytes()
            ).digest()
            for n in names
        ]
        for run in ("whole", "cut")
    ]
    assert digests[0] == digests[1] and os.path.islink("outputs/latest")
