"""Commands as in tests/cli, and file permissions that bind root as well."""

import ctypes
import os
import sys
from contextlib import contextmanager

import pytest

from tests.cli.conftest import command, tiny

__all__ = ["command", "permissions", "tiny"]

_CAPABILITIES = 0x20080522  # the version of the calls below: two blocks of three words
_IGNORE_PERMISSIONS = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@pytest.fixture
def permissions():
    """Context manager in which file permissions are enforced, even if the tests run as root."""
    if os.geteuid() and not _ignores_permissions():
        return _nothing
    if not sys.platform.startswith("linux"):
        pytest.skip("root ignores permissions, and only Linux can drop capabilities temporarily")
    return _enforced


@contextmanager
def _nothing():
    yield


@contextmanager
def _enforced():
    """Drop the capabilities of this thread, and of threads that it starts, for a while."""
    before = _capabilities()
    _set_capabilities(before[0] & ~_IGNORE_PERMISSIONS, *before[1:])
    try:
        yield
    finally:
        _set_capabilities(*before)


def _ignores_permissions():
    return sys.platform.startswith("linux") and bool(_capabilities()[0] & _IGNORE_PERMISSIONS)


def _capabilities():
    """Return effective, permitted and inheritable capabilities 0 to 31, then those of the rest."""
    words = (ctypes.c_uint32 * 6)()
    _call("capget", words)
    return tuple(words)


def _set_capabilities(*words):
    _call("capset", (ctypes.c_uint32 * 6)(*words))


def _call(name, words):
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    if getattr(ctypes.CDLL(None, use_errno=True), name)(header, words):
        raise OSError(ctypes.get_errno(), f"{name} failed")
