"""Partial results of interrupted evaluations, which are continued later.

While an evaluation runs, the ``evaluation.json`` in its folder is marked as incomplete and contains
the finished metrics. The hidden folder ``.ddpm-unfinished`` beside it contains the results of each
finished batch: features of samples, terms of the bound. An evaluation with the same request
continues there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.console import warn
from ddpm.errors import ConfigError
from ddpm.evaluation import results
from ddpm.evaluation.results import EvaluationResult
from ddpm.files import UNREADABLE, load_tensors, replacing
from ddpm.guidance import LATER_OPTIONS
from ddpm.outputs import OutputFolder
from ddpm.training.lock import FILE as LOCK
from ddpm.training.lock import Lock

FOLDER = ".ddpm-unfinished"  # the prefix of names that are never the user's


class PartialResults:
    """Results of single batches, stored in a folder by name and first index.

    Args:
        folder: of the files; None = nothing is stored.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self._failed = folder, False

    def has(self, name: str, batch: list[int]) -> bool:
        """Return True if the results of a batch are stored."""
        return self.folder is not None and self._path(name, batch).is_file()

    def load(self, name: str, batch: list[int]) -> dict[str, Tensor] | None:
        """Return the results of a batch; None if they are not stored, or damaged."""
        if not self.has(name, batch):
            return None
        try:
            return load_tensors(self._path(name, batch))
        except Exception as error:  # damaged files fail in many ways
            reason = str(error).partition("\n")[0]
            warn(f"{self._path(name, batch)} is damaged ({reason}); computing the batch again")
            return None

    def save(self, name: str, batch: list[int], results: Mapping[str, Tensor]) -> None:
        """Store the results of a batch; warn once if the file cannot be written."""
        if self.folder is None or self._failed:
            return
        import safetensors.torch

        content = safetensors.torch.save({k: v.contiguous() for k, v in results.items()})
        try:
            with replacing(self._path(name, batch)) as aside:
                aside.write_bytes(content)
        except ConfigError as error:
            self._failed = True
            warn(f"{error}; an interrupted evaluation will resume from this batch")

    def load_or_compute(
        self, name: str, batch: list[int], compute: Callable[[list[int]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the results of a batch, stored or computed and then stored.

        Args:
            name: of the computation, such as ``samples``.
            batch: indices of the items.
            compute: returns the results of a batch.
        """
        results = self.load(name, batch)
        if results is None:
            results = compute(batch)
            self.save(name, batch, results)
        return results

    def clear(self, *, lock: bool = True) -> None:
        """Delete the stored results, and the folder if it is then empty.

        Args:
            lock: delete also the file that locks the folder.
        """
        if self.folder is None:
            return
        for path in self.folder.glob("*-[0-9]*.safetensors"):
            path.unlink(missing_ok=True)
        if lock:
            (self.folder / LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, name: str, batch: list[int]) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}-{batch[0]:08d}.safetensors"


class EvaluationRecord:
    """Record of an evaluation in progress.

    Args:
        output: the folder of the evaluation; None = nothing is recorded.
        request: everything that determines the results, as plain JSON.
        main: True on the process that writes the record.
    """

    def __init__(
        self,
        output: OutputFolder | None = None,
        request: Mapping[str, Any] | None = None,
        *,
        main: bool = True,
    ) -> None:
        folder = None if output is None else output.path
        self.output, self.folder, self.request, self.main = output, folder, request, main
        self.partial_results = PartialResults(None if folder is None else folder / FOLDER)
        self._metrics, self._warnings = [], []
        if folder is not None and is_unfinished(folder, request):
            with suppress(*UNREADABLE):
                self._metrics, self._warnings, _ = results.read(folder)

    @property
    def output_folder(self) -> OutputFolder:
        """The folder of the evaluation."""
        assert self.output is not None
        return self.output

    def recall(self, result: EvaluationResult, metrics: Iterable[str]) -> bool:
        """Add the numbers of a finished metric to a result; return False if it is not finished.

        Args:
            result: receives the numbers.
            metrics: the names of the metric's numbers, such as precision and recall.
        """
        names = set(metrics)
        finished = [each for each in self._metrics if each.provenance["metric"] in names]
        if {each.provenance["metric"] for each in finished} != names:
            return False
        result.metrics.extend(finished)
        result.warn(*self._warnings)
        return True

    def save(self, result: EvaluationResult) -> None:
        """Write the finished metrics into ``evaluation.json``, marked as incomplete."""
        if self.output is None or not self.main:
            return
        names = {metric.name for metric in result.metrics}
        earlier = [metric for metric in self._metrics if metric.name not in names]
        combined = EvaluationResult([*result.metrics, *earlier], result.warnings)
        try:
            combined.write(self.output.aside, request=self.request, complete=False)
            self.output.publish()
        except ConfigError as error:
            warn(f"{error}; the evaluation continues")

    def abandon(self) -> bool:
        """Return True if there are partial results; delete an empty record."""
        if self.folder is None or any((self.folder / FOLDER).glob("*.safetensors")):
            return True
        if self.main:
            self.partial_results.clear()
            with suppress(*UNREADABLE):
                metrics, _, content = results.read(self.folder)
                if metrics:
                    return True
                if content.get("complete") is False:
                    (self.folder / results.FILE).unlink()
        return False


def is_unfinished(folder: Path, request: Mapping[str, Any] | None) -> bool:
    """Return True if a folder contains an incomplete evaluation of the same request."""
    try:
        _, _, content = results.read(folder)
    except UNREADABLE:
        return False
    return content.get("complete") is False and stored_request(content) == request


def find(parent: Path, request: Mapping[str, Any]) -> tuple[Path, Lock] | None:
    """Return the newest unfinished evaluation of a request, with its lock.

    Evaluations that another process continues are ignored.

    Args:
        parent: the folder that contains the folders of evaluations.
        request: everything that determines the results.
    """
    plain_request = plain(request)
    files = sorted(parent.glob(f"*/{results.FILE}"), key=lambda file: file.stat().st_mtime_ns)
    for folder in (file.parent for file in reversed(files)):
        if is_unfinished(folder, plain_request):
            lock = Lock(folder / FOLDER)
            with suppress(ConfigError):
                lock.acquire("out", lambda _: None, seconds=0)
                return folder, lock
    return None


def stored_request(content: Mapping[str, Any]) -> Any:
    """Return the request in a results file.

    Earlier versions stored the sampler's ``steps`` beside it.
    """
    request = content.get("request")
    if not isinstance(request, dict):
        return request
    request = plain(request)
    if "steps" not in request:
        return request
    steps = request["steps"]
    sampler = request["sampler"] if steps is None else {**request["sampler"], "steps": steps}
    rest = {name: value for name, value in request.items() if name != "steps"}
    return {**rest, "sampler": sampler}


def plain(request: Mapping[str, Any]) -> Any:
    """Return a request as it would be read from a file.

    Options that earlier versions lacked are left out where they are null.
    """
    later = [name for name in LATER_OPTIONS if request.get(name) is None]
    request = {name: value for name, value in request.items() if name not in later}
    return json.loads(json.dumps(request, default=str))
