"""Barriers and the exchange of status flags, on any device."""

from types import SimpleNamespace

import pytest
import torch

from ddpm.distributed.consensus import Agreed, agree, main_first, post_status, wait_for_all


def process(device, processes=2, main=True):
    return SimpleNamespace(
        num_processes=processes, device=torch.device(device), is_main_process=main
    )


@pytest.fixture
def barriers(monkeypatch):
    """Devices of the barrier calls."""
    result = []
    monkeypatch.setattr(
        torch.distributed, "barrier", lambda device_ids=None: result.append(device_ids)
    )
    return result


def test_a_barrier_uses_the_device_of_the_process(barriers):
    """The rank is not the device: two processes may share GPU 0, or run on the CPU."""
    for device in ("cuda:0", "cuda:3", "cpu", "cpu:1"):
        wait_for_all(process(device))
    wait_for_all(process("cuda:0", processes=1))
    assert barriers == [[0], [3], None, None]


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("other", [0.0, 1.0])
def test_the_clock_of_the_main_process_decides(main, other):
    """The sum contains the other processes; this one contributes if it is the main process."""
    accelerator = process("cpu", main=main)
    accelerator.reduce = lambda flags, reduction: flags + torch.tensor([0.0, 0.0, 0.0, other])
    result = agree(accelerator, torch.ones(()), stop=False, failed=False, save=True)
    assert result == Agreed(finite=True, stop=False, failed=False, save=main or other > 0)
    alone = process("cpu", processes=1)
    assert agree(alone, torch.ones(()), stop=False, failed=False, save=True).save
    assert not agree(alone, torch.ones(()), stop=False, failed=False).save


@pytest.mark.parametrize("others", [None, (0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 2, 1)])
@pytest.mark.parametrize("norm", [1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("flags", [(False, False, False), (True, False, True), (False, True, True)])
def test_the_status_is_on_the_device_and_later_on_the_host(norm, flags, others):
    accelerator = process("cpu", processes=1 if others is None else 4)
    accelerator.reduce = lambda mine, reduction: mine + torch.tensor(others)
    options = dict(zip(("stop", "failed", "save"), flags, strict=True))
    status = post_status(accelerator, torch.tensor(norm), **options)
    more = (0, 0, 0, 0) if others is None else others
    finite = norm == 1.0 and not more[0]
    assert status.nonfinite.dtype == torch.float32 and status.nonfinite.shape == ()
    assert float(status.nonfinite) == (not finite)
    expected = [bool(flag or other) for flag, other in zip(flags, more[1:], strict=True)]
    assert status.read() == Agreed(finite, *expected)
    assert agree(accelerator, torch.tensor(norm), **options) == status.read()


@pytest.mark.parametrize(("main", "before"), [(True, 0), (False, 1)])
def test_the_main_process_is_first(barriers, main, before):
    with main_first(process("cpu", main=main)):
        assert len(barriers) == before
    assert len(barriers) == 1
