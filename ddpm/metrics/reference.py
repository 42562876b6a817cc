"""What samples are compared with: computed once, kept in a file that says of what it is.

A file is named by a hash of all that determines it, holds that as its provenance, and a hash of
its content: one that is damaged or of something else is not used, but computed anew. A file that
the user names is refused instead.
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
"""Bytes of features that a file keeps beside mean and covariance; of more only those."""
_NAME = "reference"  # under which a file tells of what it is
_VERSION = 1  # of the file; another one is computed anew


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Of several processes, the main one alone has more than the provenance.

    Attributes:
        statistics: for fid.
        features: (n, D), for kid and prc; None where a file has none.
        provenance: ``reference`` (what images, how many, their hash), ``extractor`` (name, hash,
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
    """What the features of the first ``count`` images, or of all, are of.

    Raises:
        ConfigError: (key ``reference``) there are not so many.
    """
    taken = len(images) if count is None else count
    problem = f"has {len(images)} images, not {taken}; ask for fewer"
    require(taken <= len(images), "reference", None, problem)
    return {
        "reference": {**images.provenance(), "num_images": taken},
        "extractor": extractor.provenance(),
        "resize": extractor.resize,
    }


def key_of(wanted: Mapping[str, Any]) -> str:
    """The hash of all in a provenance that determines the features: no names, no paths."""
    return hashlib.sha256(json.dumps([_VERSION, *_determining(wanted)]).encode()).hexdigest()


def _determining(told: Mapping[str, Any]) -> list[Any]:
    images, extractor = told["reference"], told["extractor"]
    what = [images[name] for name in ("sha256", "num_images", "shape")]
    return [*what, extractor["name"], extractor["sha256"], told["resize"]]


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
    """What the cache has, else what ``compute`` gives, which is then kept.

    Args:
        extractor: prepared.
        images: those to compare with.
        compute: gives the features of the first so many images, in their order, or their
            statistics; on other processes than the main one None.
        cache: the folder of files; None = nothing is looked up or kept.
        count: how many of the images; None = all.
        need_features: a file with statistics alone does not do.
        main: of several processes, the one that looks into the cache and writes to it.
        broadcast: returns the value of the main process on every process.
        attend: calls what takes long, on the main process.

    Raises:
        ConfigError: too few images, or the cache cannot be written.
    """
    wanted = provenance(extractor, images, count)
    place = cache if main else None
    found = None if place is None else find(place, wanted, need_features=need_features)
    known = broadcast(None if found is None else found.provenance)
    if known is not None:
        return found or Reference(None, None, known)
    num_images = wanted["reference"]["num_images"]
    require(num_images >= 2, "reference", None, f"holds {num_images} images; there must be 2")
    computed = compute(num_images)
    made = attend(partial(make, computed, wanted)) if main and computed is not None else None
    if place is not None and made is not None:
        keep(place, made)
    known = broadcast(None if made is None else made.provenance)
    assert known is not None
    return made or Reference(None, None, known)


def make(computed: Features | Statistics, wanted: Mapping[str, Any]) -> Reference:
    """The reference of the features of all images that a provenance tells of, in any order."""
    values = None
    if isinstance(computed, Features):
        values = concatenate([computed], wanted["reference"]["num_images"]).features
        computed = Statistics.from_features(values)
    extractor = {**wanted["extractor"], "features": len(computed.mu)}
    return Reference(computed, values, {**wanted, "extractor": extractor})


def find(
    cache: Path, wanted: Mapping[str, Any], *, need_features: bool = False
) -> Reference | None:
    """What the cache has of this provenance; None if nothing.

    A file that is damaged, or of something else than its name says, counts as nothing and is
    told as a warning.
    """
    path = cache / f"{key_of(wanted)}.safetensors"
    if not path.exists():
        return None
    try:
        found = _read(path)
        if _determining(found.provenance) != _determining(wanted):
            raise ValueError("it is of something else than its name says")
    except Exception as error:  # damaged files fail in many ways
        warn(f"{path} cannot be used ({_reason(error)}); computing the reference anew")
        return None
    told = {**found.provenance, "reference": wanted["reference"]}  # where the images lie now
    usable = found.features is not None or not need_features
    return Reference(found.statistics, found.features, told) if usable else None


def keep(cache: Path, made: Reference) -> Path:
    """Write a reference into the cache, whole or not at all; features only if they are not many.

    Raises:
        ConfigError: the file system refuses.
    """
    import safetensors.torch

    statistics, features = made.require_statistics(), made.features
    tensors = {"mu": torch.from_numpy(statistics.mu), "sigma": torch.from_numpy(statistics.sigma)}
    if features is not None and features.numel() * features.element_size() <= LARGEST_CACHED:
        tensors["features"] = features.contiguous()
    # under a single name: of several, safetensors mixes the order
    told = {_NAME: json.dumps({"provenance": made.provenance, "sha256": _digest(tensors)})}
    path = cache / f"{key_of(made.provenance)}.safetensors"
    with replacing(path) as aside:
        aside.write_bytes(safetensors.torch.save(tensors, told))
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

    An .npz holds ``mu`` (D,) and ``sigma`` (D, D), and does not say of what.

    Args:
        path: the file.
        extractor: prepared, that of the samples.
        dim: its features an image.
        need_features: kid or prc are asked for.
        key: the option that names it.

    Raises:
        ConfigError: (key ``key``) it is damaged, of another extractor, or lacks what is needed.
    """
    place = Path(path)
    require(place.is_file(), key, path, "there is no such file")
    ours = place.suffix == ".safetensors"
    found = _ours(place, path, extractor, key) if ours else _of_the_field(path, extractor, key)
    _check_shape(found.require_statistics(), dim, path, key)
    problem = "holds no features, which kid and prc need; give the images, or metrics=[fid]"
    require(found.features is not None or not need_features, key, path, problem)
    guess = f"{path} does not say of which extractor and images it is; {extractor.name} is assumed"
    return found, () if ours else (guess,)


def _ours(place: Path, path: str, extractor: Extractor, key: str) -> Reference:
    try:
        found = _read(place)
        there, resize = found.provenance["extractor"], found.provenance["resize"]
        theirs = [there["name"], there["sha256"], resize]
    except Exception as error:  # damaged files fail in many ways
        problem = f"cannot be used ({_reason(error)}); give another file, or the images"
        raise ConfigError(key, path, problem) from error
    pairs = zip(theirs, [extractor.name, extractor.sha256, extractor.resize], strict=True)
    for what, (its, wanted) in zip(("extractor", "weights", "resizing"), pairs, strict=True):
        said = [str(each)[:12] if what == "weights" else each for each in (its, wanted)]
        problem = f"was made with the {what} {said[0]}, and the samples' is {said[1]}"
        require(its == wanted, key, path, f"{problem}; give the images instead")
    return found


def _of_the_field(path: str, extractor: Extractor, key: str) -> Reference:
    arrays = read_npz(path, key, "mu", "sigma")
    mu, sigma = (arrays[name] for name in ("mu", "sigma"))
    problem = "its mu and sigma are no real numbers; give another file, or the images"
    require({mu.dtype.kind, sigma.dtype.kind} == {"f"}, key, path, problem)
    told = {
        "reference": {"source": path, "sha256": file_sha256(Path(path), key)},
        "extractor": {**extractor.provenance(), "features": len(np.atleast_1d(mu))},
        "resize": "not known: the file does not say",
    }
    statistics = Statistics(mu.astype(np.float64), sigma.astype(np.float64), None)
    return Reference(statistics, None, told)


def _read(path: Path) -> Reference:
    """A file of ours; what is wrong with it raises anything."""
    from safetensors import safe_open

    tensors = load_tensors(path)
    with safe_open(path, framework="pt") as file:
        told = json.loads((file.metadata() or {}).get(_NAME, "{}"))
    if told.get("sha256") != _digest(tensors):
        raise ValueError("its content is not that of its hash")
    provenance = {name: told["provenance"][name] for name in ("reference", "extractor", "resize")}
    if not all(isinstance(provenance[name], dict) for name in ("reference", "extractor")):
        raise ValueError("it does not say of what it is")
    statistics = Statistics(
        tensors["mu"].numpy(),
        tensors["sigma"].numpy(),
        int(provenance["reference"]["num_images"]),
    )
    features = tensors.get("features")
    whole = features is None or features.shape == (statistics.num_images, len(statistics.mu))
    if not whole:
        raise ValueError("its features are not of so many images")
    return Reference(statistics, features, provenance)


def _check_shape(held: Statistics, dim: int, path: str, key: str) -> None:
    """Refuse what cannot be mean and covariance of ``dim`` features."""
    shapes = (held.mu.shape, held.sigma.shape)
    problem = f"its mu is {_size(shapes[0])} and its sigma {_size(shapes[1])}, and the extractor"
    remedy = f"has {dim} features; take the extractor that it was made with"
    require(shapes == ((dim,), (dim, dim)), key, path, f"{problem} {remedy}")
    finite = bool(np.isfinite(held.mu).all() and np.isfinite(held.sigma).all())
    require(finite, key, path, "its mu or sigma holds NaN or infinite values; make it anew")
    skew = np.abs(held.sigma - held.sigma.T).max()
    good = skew <= 1e-6 * np.abs(held.sigma).max() and held.sigma.diagonal().min() >= 0
    require(bool(good), key, path, "its sigma is no covariance: not symmetric, or negative")


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
