"""Metrics of features, computed by torch-fidelity with its defaults and seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ddpm.errors import require

SEED = 2020
"""Seed of torch-fidelity for the subsets of KID and the shuffling of the Inception score."""
SPLITS, SUBSETS, SUBSET_SIZE, NEIGHBOURS = 10, 100, 1000, 3
WHOLE = 50_000
"""Number of samples from which on the name of a metric has no suffix."""
LARGEST = 10_000
"""Features of the largest covariance: 0.8 GB, and many minutes for its eigenvalues."""
_FULL = 10_000  # largest number of images whose distances are all in memory
METRICS = ("fid", "kid", "isc", "prc")


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features.

    Attributes:
        mu: (D,), of the features' own type.
        sigma: (D, D) in float64.
        num_images: number of images; None if a file does not record it.
    """

    mu: npt.NDArray[np.floating[Any]]
    sigma: npt.NDArray[np.float64]
    num_images: int | None

    @classmethod
    def from_features(cls, features: Tensor) -> Statistics:
        """Return the statistics of features (n, D) on the CPU, n at least 2.

        Raises:
            ConfigError: more than :data:`LARGEST` features.
        """
        from torch_fidelity.metric_fid import fid_features_to_statistics

        count, dim = features.shape
        assert count >= 2, count
        require_size(dim)
        statistics = fid_features_to_statistics(features)
        sigma = np.asarray(statistics["sigma"]).reshape(dim, dim)  # of one feature it is a number
        return cls(statistics["mu"], sigma, count)


@dataclass(frozen=True)
class Score:
    """The numbers of a metric, with the settings that make them comparable.

    Attributes:
        values: by name; ``kid`` and ``isc`` have a ``_std`` beside them, ``prc`` is ``precision``,
            ``recall`` and ``f_score``.
        num_samples: number of samples; None if unknown.
        num_reference: number of reference images; None if unknown or without a reference.
        settings: parameters of the metric.
        warnings: reasons to distrust the numbers, one line each.
    """

    values: dict[str, float]
    num_samples: int | None
    num_reference: int | None = None
    settings: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def metric_name(metric: str, num_samples: int) -> str:
    """Return ``fid`` for 50,000 samples and more, else ``fid_5k`` or ``fid_1797``."""
    if num_samples >= WHOLE:
        return metric
    thousands, rest = divmod(num_samples, 1000)
    return f"{metric}_{num_samples}" if rest or not thousands else f"{metric}_{thousands}k"


def check_metric(
    metric: str, num_samples: int | None, num_reference: int | None, dim: int, classes: int | None
) -> tuple[str, ...]:
    """Return the warnings about a metric before it is computed, one line each.

    Args:
        metric: ``fid``, ``kid``, ``isc`` or ``prc``.
        num_samples: number of samples; None if unknown.
        num_reference: number of reference images; None if unknown or without a reference.
        dim: features per image.
        classes: logits per image; None without logits.

    Raises:
        ConfigError: too few images, or an extractor without logits for ``isc``.
    """
    least = NEIGHBOURS + 1 if metric == "prc" else 2
    if num_samples is not None:
        problem = f"{metric} needs at least {least} samples"
        require(num_samples >= least, "num_samples", num_samples, problem)
    if num_reference is not None:
        problem = f"contains {num_reference} images, and {metric} needs at least {least}"
        require(num_reference >= least, "reference", None, problem)
    if metric == "isc":
        remedy = "leave isc out, or use extractor=inception"
        problem = f"the extractor returns no logits; {remedy}"
        require(classes is not None, "metrics", "isc", problem)
        few = num_samples is not None and num_samples < SPLITS * (classes or 0)
        problem = f"a tenth of {num_samples} samples is fewer than the {classes} classes"
        return (f"isc: {problem}, so the score is too low",) if few else ()
    if metric != "fid":
        return ()
    require_size(dim)
    counts = {"samples": num_samples, "reference images": num_reference}
    return tuple(
        f"fid: {count} {what} are fewer than the {dim} features, so their covariance is singular; "
        "compare with numbers of equally many only"
        for what, count in counts.items()
        if count is not None and count < dim
    )


def fid(samples: Tensor | Statistics, reference: Tensor | Statistics) -> Score:
    """Return the Fréchet distance of Gaussians (Heusel et al. 2017, arXiv 1706.08500).

    Args:
        samples: features (n, D) on the CPU, or their statistics.
        reference: those of the reference.

    Raises:
        ConfigError: fewer than 2 images, another number of features, or too many of them.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    counts = _count(samples), _count(reference)
    _same_dim(samples, reference)
    warnings = check_metric("fid", *counts, _dim(samples), None)
    ours, theirs = (
        each if isinstance(each, Statistics) else Statistics.from_features(each)
        for each in (samples, reference)
    )
    same = ours.mu.dtype == theirs.mu.dtype  # files of the field have float64
    first, second = (
        {"mu": each.mu if same else each.mu.astype(np.float64), "sigma": each.sigma}
        for each in (ours, theirs)
    )
    value = fid_statistics_to_metric(first, second, False)[KEY_METRIC_FID]
    return Score({"fid": value}, *counts, {}, warnings)


def kid(samples: Tensor, reference: Tensor, *, seed: int = SEED) -> Score:
    """Return the kernel distance (Bińkowski et al. 2018, arXiv 1801.01401).

    The numbers are the mean and the standard deviation over subsets. A subset has 1000 images, or
    all if there are fewer.

    Args:
        samples: features (n, D) on the CPU.
        reference: features (m, D).
        seed: draws the subsets.

    Raises:
        ConfigError: fewer than 2 images, or another number of features.
    """
    from torch_fidelity.metric_kid import (
        KEY_METRIC_KID_MEAN,
        KEY_METRIC_KID_STD,
        kid_features_to_metric,
    )

    counts = len(samples), len(reference)
    _same_dim(samples, reference)
    warnings = check_metric("kid", *counts, _dim(samples), None)
    size = min(SUBSET_SIZE, *counts)
    computed = kid_features_to_metric(
        samples,
        reference,
        kid_subsets=SUBSETS,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    values = {"kid": computed[KEY_METRIC_KID_MEAN], "kid_std": computed[KEY_METRIC_KID_STD]}
    settings = {"subsets": SUBSETS, "subset_size": size, "seed": seed}
    return Score(values, *counts, settings, warnings)


def isc(logits: Tensor | None, *, seed: int = SEED) -> Score:
    """Return the Inception score (Salimans et al. 2016, arXiv 1606.03498).

    The numbers are the mean and the standard deviation over ten splits.

    Args:
        logits: (n, K) on the CPU; fewer than ten images make as many splits.
        seed: shuffles the images.

    Raises:
        ConfigError: missing logits, or fewer than 2 images.
    """
    from torch_fidelity.metric_isc import (
        KEY_METRIC_ISC_MEAN,
        KEY_METRIC_ISC_STD,
        isc_features_to_metric,
    )

    count = None if logits is None else len(logits)
    warnings = check_metric("isc", count, None, 0, None if logits is None else logits.shape[1])
    assert logits is not None and count is not None
    splits = min(SPLITS, count)
    computed = isc_features_to_metric(logits, splits, True, seed)
    values = {"isc": computed[KEY_METRIC_ISC_MEAN], "isc_std": computed[KEY_METRIC_ISC_STD]}
    return Score(values, count, None, {"splits": splits, "seed": seed}, warnings)


def prc(samples: Tensor, reference: Tensor) -> Score:
    """Return improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    Manifolds are estimated with 3 neighbours.

    Args:
        samples: features (n, D) on the CPU.
        reference: features (m, D).

    Raises:
        ConfigError: fewer than 4 images, or another number of features.
    """
    from torch_fidelity.metric_prc import (
        KEY_METRIC_F_SCORE,
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    counts = len(samples), len(reference)
    _same_dim(samples, reference)
    warnings = check_metric("prc", *counts, _dim(samples), None)
    computed = prc_features_to_metric(
        samples,
        reference,
        prc_neighborhood=NEIGHBOURS,
        save_cpu_ram=max(counts) > _FULL,
        verbose=False,
    )
    names = {
        "precision": KEY_METRIC_PRECISION,
        "recall": KEY_METRIC_RECALL,
        "f_score": KEY_METRIC_F_SCORE,
    }
    values = {ours: computed[theirs] for ours, theirs in names.items()}
    return Score(values, *counts, {"neighbours": NEIGHBOURS}, warnings)


def _count(values: Tensor | Statistics) -> int | None:
    return values.num_images if isinstance(values, Statistics) else len(values)


def _dim(values: Tensor | Statistics) -> int:
    return len(values.mu) if isinstance(values, Statistics) else values.shape[1]


def _same_dim(samples: Tensor | Statistics, reference: Tensor | Statistics) -> None:
    ours, theirs = _dim(samples), _dim(reference)
    problem = f"has {theirs} features per image, the samples have {ours}; use images of one size"
    require(ours == theirs, "reference", None, f"{problem} and one extractor")


def require_size(dim: int) -> None:
    """Raise ConfigError for more features than :data:`LARGEST`."""
    problem = f"returns {dim} features per image; fid supports at most {LARGEST}, kid and prc any"
    require(dim <= LARGEST, "extractor", None, f"{problem}, and extractor=inception has 2048")
