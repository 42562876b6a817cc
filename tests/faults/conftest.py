"""Commands as in tests/cli, and ways to make the world around them hostile."""

import ctypes
import os
import sys
from contextlib import contextmanager

import pytest

from tests.cli.conftest import command, tiny

__all__ = ["command", "permissions", "tiny"]

_CAPABILITIES = 0x20080522  # the version of the calls below: two blocks of three words
_MAY_IGNORE_PERMISSIONS = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@pytest.fixture
def permissions():
    """``with permissions():`` file permissions bind, also where the tests run as root."""
    if os.geteuid() and not _ignored():
        return _nothing
    if not sys.platform.startswith("linux"):
        pytest.skip("root may do everything, and only Linux can take that away for a while")
    return _bound


@contextmanager
def _nothing():
    yield


@contextmanager
def _bound():
    """Lay these powers of this thread, and of threads that it starts, down and take them up."""
    before = _powers()
    _set_powers(before[0] & ~_MAY_IGNORE_PERMISSIONS, *before[1:])
    try:
        yield
    finally:
        _set_powers(*before)


def _ignored():
    return sys.platform.startswith("linux") and bool(_powers()[0] & _MAY_IGNORE_PERMISSIONS)


def _powers():
    """Effective, permitted, inheritable of the capabilities 0 to 31, then of the others."""
    words = (ctypes.c_uint32 * 6)()
    _call("capget", words)
    return tuple(words)


def _set_powers(*words):
    _call("capset", (ctypes.c_uint32 * 6)(*words))


def _call(name, words):
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    if getattr(ctypes.CDLL(None, use_errno=True), name)(header, words):
        raise OSError(ctypes.get_errno(), f"{name} failed")
