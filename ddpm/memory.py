"""Detection of out-of-memory errors, and the import of torch without searches for garbage."""

from __future__ import annotations

import errno
import gc
import re
import sys

_GPU = re.compile(r"CUDA|HIP|CUBLAS|CUDNN|XPU")
_SIGNS = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|bad_alloc")
_REQUESTED = re.compile(r"(?i)tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an error of a GPU's, the machine's or NumPy's allocator.

    torch has an error class for GPUs. For the CPU and for the libraries below it, it raises a
    ``RuntimeError`` that only the text distinguishes from others.
    """
    if isinstance(error, MemoryError) or on_gpu(error):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _SIGNS.search(str(error)) is not None


def on_gpu(error: BaseException) -> bool:
    """Return True if the memory of a GPU ran out."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return True
    text = str(error)
    signs = _GPU.search(text) is not None and _SIGNS.search(text) is not None
    return isinstance(error, RuntimeError) and signs


def requested(error: BaseException) -> str | None:
    """Return the size of the failed allocation in words, such as ``2.00 GiB``, if it is known."""
    match = _REQUESTED.search(str(error))
    if match is None:
        return None
    number, unit = match.groups()
    return f"{number} {unit}" if unit != "bytes" else f"{float(number) / 2**30:.2f} GiB"


def import_torch() -> None:
    """Import torch, for a process that ends with its command.

    Its 200,000 objects stay until the end: to search them for garbage meanwhile and afterwards is a
    tenth of the start.
    """
    if "torch" not in sys.modules:
        gc.disable()
        try:
            import torch  # noqa: F401
        finally:
            gc.enable()
        gc.freeze()
