"""What the processes do together, whatever device each of them has."""

from types import SimpleNamespace

import pytest
import torch

from ddpm.training.agreement import main_first, wait_for_all


def process(device, processes=2, main=True):
    return SimpleNamespace(
        num_processes=processes, device=torch.device(device), is_main_process=main
    )


@pytest.fixture
def barriers(monkeypatch):
    """The devices that barriers were called with."""
    found = []
    monkeypatch.setattr(
        torch.distributed, "barrier", lambda device_ids=None: found.append(device_ids)
    )
    return found


def test_a_barrier_names_the_device_that_a_process_has(barriers):
    """Not the number of the process: two processes may share GPU 0, or be on the CPU beside it."""
    for device in ("cuda:0", "cuda:3", "cpu", "cpu:1"):
        wait_for_all(process(device))
    wait_for_all(process("cuda:0", processes=1))
    assert barriers == [[0], [3], None, None]


@pytest.mark.parametrize(("main", "before"), [(True, 0), (False, 1)])
def test_the_main_process_is_first(barriers, main, before):
    with main_first(process("cpu", main=main)):
        assert len(barriers) == before
    assert len(barriers) == 1
