"""One thread per test process: tests run in parallel, and the order of summation is fixed.

The user's cache is a temporary folder.
"""

import gc
import os
import shutil
import signal
import sys
import tempfile

import pytest

os.environ["DDPM_CACHE"] = tempfile.mkdtemp(prefix="ddpm-tests-")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

import torch

torch.set_num_threads(1)
torch.set_num_interop_threads(1)

_CACHE = os.environ["DDPM_CACHE"]
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
for each in _SIGNALS:
    if signal.getsignal(each) == signal.SIG_IGN:  # by nohup or the shell of a CI
        signal.signal(each, signal.SIG_DFL)
_frozen = 0  # modules at the last call of _freeze
_HANDLERS = {each: signal.getsignal(each) for each in _SIGNALS}


@pytest.fixture(autouse=True)
def imported_modules():
    """Exclude modules that tests have imported from the garbage collection, as at the start."""
    if len(sys.modules) > _frozen:
        _freeze()


@pytest.fixture(autouse=True)
def signals():
    """Restore the signal handlers, since a command that ends ignores signals."""
    for each, handler in _HANDLERS.items():
        signal.signal(each, handler)


def pytest_collection_finish():
    """Exclude imported modules from the garbage collection, which each command calls.

    With the objects of torch, Hydra and the tests, a collection takes half a second.
    """
    _freeze()


def _freeze():
    global _frozen
    gc.collect()
    gc.freeze()
    _frozen = len(sys.modules)


def pytest_sessionfinish():
    """Remove the cache."""
    shutil.rmtree(_CACHE, ignore_errors=True)
