"""Reference features and statistics, cached in files that record their provenance.

The name of a file is a hash of everything that determines its content. It contains its provenance
and a hash of its content. A cached file that is damaged or has another provenance is ignored and
computed again; a file that the user names raises an error instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddpm.console import warn
from ddpm.errors import ConfigError, require
from ddpm.files import load_tensors, replacing
from ddpm.metrics.extractors import Extractor
from ddpm.metrics.features import Features, concatenate
from ddpm.metrics.image_sources import Images, file_sha256, read_npz
from ddpm.metrics.scores import Statistics

LARGEST_CACHED = 2**29
"""Bytes of features up to which a cache file contains them beside mean and covariance."""
_NAME = "reference"  # key of the provenance in the metadata of a file
_VERSION = 1  # of the file format; files of other versions are ignored


@dataclass(frozen=True)
class Reference:
    """Reference that samples are compared with.

    Only the main process has more than the provenance.

    Attributes:
        statistics: for fid.
        features: (n, D), for kid and prc; None if a file lacks them.
        provenance: ``reference`` (source, number, hash of the images), ``extractor`` (name, hash,
            number of features) and ``resize``, as plain JSON.
    """

    statistics: Statistics | None
    features: Tensor | None
    provenance: dict[str, Any]

    def require_statistics(self) -> Statistics:
        """Return the statistics on a process that has them."""
        assert self.statistics is not None
        return self.statistics


def provenance(extractor: Extractor, images: Images, count: int | None = None) -> dict[str, Any]:
    """Return the provenance of the features of the first ``count`` images, or of all.

    Raises:
        ConfigError: (key ``reference``) there are fewer images.
    """
    used = len(images) if count is None else count
    problem = f"has {len(images)} images, not {used}; request fewer"
    require(used <= len(images), "reference", None, problem)
    return {
        "reference": {**images.provenance(), "num_images": used},
        "extractor": extractor.provenance(),
        "resize": extractor.resize,
    }


def key_of(requested: Mapping[str, Any]) -> str:
    """Return the hash of everything in a provenance that determines the features, without paths."""
    return hashlib.sha256(json.dumps([_VERSION, *_determining(requested)]).encode()).hexdigest()


def _determining(record: Mapping[str, Any]) -> list[Any]:
    images, extractor = record["reference"], record["extractor"]
    what = [images[name] for name in ("sha256", "num_images", "shape")]
    return [*what, extractor["name"], extractor["sha256"], record["resize"]]


def cached_reference(
    extractor: Extractor,
    images: Images,
    compute: Callable[[int], Features | Statistics | None],
    *,
    cache: Path | None,
    count: int | None = None,
    need_features: bool = False,
    main: bool = True,
    broadcast: Callable[[dict[str, Any] | None], dict[str, Any] | None] = lambda value: value,
    attend: Callable[[Callable[[], Reference]], Reference] = lambda work: work(),
) -> Reference:
    """Return the reference of images, from the cache or computed and then cached.

    Args:
        extractor: prepared.
        images: those to compare with.
        compute: returns the features of the first images, in their order, or their statistics; None
            on other processes than the main one. Its argument is the number of images.
        cache: the folder of files; None = no cache.
        count: number of images; None = all.
        need_features: True if statistics are not enough.
        main: True on the process that reads and writes the cache.
        broadcast: returns the value of the main process on every process.
        attend: calls a function that takes long, on the main process.

    Raises:
        ConfigError: too few images, or the cache cannot be written.
    """
    requested = provenance(extractor, images, count)
    place = cache if main else None
    cached = None if place is None else find(place, requested, need_features=need_features)
    shared = broadcast(None if cached is None else cached.provenance)
    if shared is not None:
        return cached or Reference(None, None, shared)
    num_images = requested["reference"]["num_images"]
    require(
        num_images >= 2, "reference", None, f"contains {num_images} images; at least 2 are required"
    )
    computed = compute(num_images)
    made = attend(partial(make, computed, requested)) if main and computed is not None else None
    if place is not None and made is not None:
        keep(place, made)
    shared = broadcast(None if made is None else made.provenance)
    assert shared is not None
    return made or Reference(None, None, shared)


def make(computed: Features | Statistics, requested: Mapping[str, Any]) -> Reference:
    """Return the reference of the features of all images of a provenance, in any order."""
    values = None
    if isinstance(computed, Features):
        values = concatenate([computed], requested["reference"]["num_images"]).features
        computed = Statistics.from_features(values)
    extractor = {**requested["extractor"], "features": len(computed.mu)}
    return Reference(computed, values, {**requested, "extractor": extractor})


def find(
    cache: Path, requested: Mapping[str, Any], *, need_features: bool = False
) -> Reference | None:
    """Return the cached reference of a provenance; None if it is not cached.

    A file that is damaged, or whose provenance does not match its name, is ignored with a warning.
    """
    path = cache / f"{key_of(requested)}.safetensors"
    if not path.exists():
        return None
    try:
        reference = _read(path)
        if _determining(reference.provenance) != _determining(requested):
            raise ValueError("its provenance does not match its name")
    except Exception as error:  # damaged files fail in many ways
        warn(f"{path} cannot be used ({_reason(error)}); computing the reference again")
        return None
    current = {**reference.provenance, "reference": requested["reference"]}  # the current path
    usable = reference.features is not None or not need_features
    return Reference(reference.statistics, reference.features, current) if usable else None


def keep(cache: Path, made: Reference) -> Path:
    """Write a reference into the cache atomically; features only up to :data:`LARGEST_CACHED`.

    Raises:
        ConfigError: the file cannot be written.
    """
    import safetensors.torch

    statistics, features = made.require_statistics(), made.features
    tensors = {"mu": torch.from_numpy(statistics.mu), "sigma": torch.from_numpy(statistics.sigma)}
    if features is not None and features.numel() * features.element_size() <= LARGEST_CACHED:
        tensors["features"] = features.contiguous()
    # a single entry: safetensors does not keep the order of several
    record = {_NAME: json.dumps({"provenance": made.provenance, "sha256": _digest(tensors)})}
    path = cache / f"{key_of(made.provenance)}.safetensors"
    with replacing(path) as aside:
        aside.write_bytes(safetensors.torch.save(tensors, record))
    return path


def load_reference(
    path: str,
    extractor: Extractor,
    dim: int,
    *,
    need_features: bool = False,
    key: str = "reference",
) -> tuple[Reference, tuple[str, ...]]:
    """A file of statistics that the user names: ours, or an .npz of the field; and warnings.

    An .npz contains ``mu`` (D,) and ``sigma`` (D, D) without provenance.

    Args:
        path: the file.
        extractor: of the samples; must be prepared.
        dim: features per image of the extractor.
        need_features: True if kid or prc are requested.
        key: the option that names it.

    Raises:
        ConfigError: (key ``key``) it is damaged, of another extractor, or lacks what is needed.
    """
    place = Path(path)
    require(place.is_file(), key, path, "file not found")
    ours = place.suffix == ".safetensors"
    load = _load_cached if ours else _load_pytorch_fid_npz
    reference = load(path, extractor, key)
    _check_shape(reference.require_statistics(), dim, path, key)
    problem = "contains no features, which kid and prc need; use the images, or metrics=[fid]"
    require(reference.features is not None or not need_features, key, path, problem)
    guess = f"{path} does not record its extractor and images; {extractor.name} is assumed"
    return reference, () if ours else (guess,)


def _load_cached(path: str, extractor: Extractor, key: str) -> Reference:
    try:
        reference = _read(Path(path))
        used, resize = reference.provenance["extractor"], reference.provenance["resize"]
        theirs = [used["name"], used["sha256"], resize]
    except Exception as error:  # damaged files fail in many ways
        problem = f"cannot be used ({_reason(error)}); use another file, or the images"
        raise ConfigError(key, path, problem) from error
    pairs = zip(theirs, [extractor.name, extractor.sha256, extractor.resize], strict=True)
    for what, (its, requested) in zip(("extractor", "weights", "resizing"), pairs, strict=True):
        first, second = (str(x)[:12] if what == "weights" else x for x in (its, requested))
        problem = f"was made with the {what} {first}, the samples with {second}"
        require(its == requested, key, path, f"{problem}; use the images instead")
    return reference


def _load_pytorch_fid_npz(path: str, extractor: Extractor, key: str) -> Reference:
    arrays = read_npz(path, key, "mu", "sigma")
    mu, sigma = (arrays[name] for name in ("mu", "sigma"))
    problem = "its mu and sigma are not real numbers; use another file, or the images"
    require({mu.dtype.kind, sigma.dtype.kind} == {"f"}, key, path, problem)
    provenance = {
        "reference": {"source": path, "sha256": file_sha256(Path(path), key)},
        "extractor": {**extractor.provenance(), "features": len(np.atleast_1d(mu))},
        "resize": "not shared: the file does not say",
    }
    statistics = Statistics(mu.astype(np.float64), sigma.astype(np.float64), None)
    return Reference(statistics, None, provenance)


def _read(path: Path) -> Reference:
    """Read a cache file; a damaged one raises errors of any kind."""
    from safetensors import safe_open

    tensors = load_tensors(path)
    with safe_open(path, framework="pt") as file:
        record = json.loads((file.metadata() or {}).get(_NAME, "{}"))
    if record.get("sha256") != _digest(tensors):
        raise ValueError("its content does not match its hash")
    provenance = {name: record["provenance"][name] for name in ("reference", "extractor", "resize")}
    if not all(isinstance(provenance[name], dict) for name in ("reference", "extractor")):
        raise ValueError("it does not record its provenance")
    statistics = Statistics(
        tensors["mu"].numpy(),
        tensors["sigma"].numpy(),
        int(provenance["reference"]["num_images"]),
    )
    features = tensors.get("features")
    whole = features is None or features.shape == (statistics.num_images, len(statistics.mu))
    if not whole:
        raise ValueError("its features are of another number of images")
    return Reference(statistics, features, provenance)


def _check_shape(held: Statistics, dim: int, path: str, key: str) -> None:
    """Check that the statistics are mean and covariance of ``dim`` features."""
    shapes = (held.mu.shape, held.sigma.shape)
    problem = f"its mu is {_size(shapes[0])} and its sigma {_size(shapes[1])}, and the extractor"
    remedy = f"has {dim} features; use the extractor that it was made with"
    require(shapes == ((dim,), (dim, dim)), key, path, f"{problem} {remedy}")
    finite = bool(np.isfinite(held.mu).all() and np.isfinite(held.sigma).all())
    require(finite, key, path, "its mu or sigma contains NaN or infinite values; create it again")
    skew = np.abs(held.sigma - held.sigma.T).max()
    good = skew <= 1e-6 * np.abs(held.sigma).max() and held.sigma.diagonal().min() >= 0
    require(bool(good), key, path, "its sigma is not a covariance: not symmetric, or negative")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        array: npt.NDArray[Any] = values.contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    return str(error).split("\n")[0] or type(error).__name__
