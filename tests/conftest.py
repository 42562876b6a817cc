"""One thread a test process: the tests run in parallel processes, and sums keep their order."""

import gc
import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

import torch

torch.set_num_threads(1)
torch.set_num_interop_threads(1)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
for each in _SIGNALS:
    if signal.getsignal(each) == signal.SIG_IGN:  # as nohup has it, and a CI's shell
        signal.signal(each, signal.SIG_DFL)
_HANDLERS = {each: signal.getsignal(each) for each in _SIGNALS}


@pytest.fixture(autouse=True)
def signals():
    """A command that is about to end ignores them; the process of the tests lives on."""
    for each, handler in _HANDLERS.items():
        signal.signal(each, handler)


def pytest_collection_finish():
    """Keep what is imported by now out of the garbage collector, which each command calls.

    Among the objects of torch, Hydra and the tests a collection takes half a second.
    """
    gc.collect()
    gc.freeze()
