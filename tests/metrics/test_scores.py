"""Scores: closed forms, and bitwise equality with torch-fidelity."""

import math

import numpy as np
import pytest
import torch

from ddpm.distributed.sharding import shard_range
from ddpm.errors import ConfigError
from ddpm.metrics import (
    Custom,
    InMemoryImages,
    Pixels,
    Statistics,
    check_metric,
    concatenate,
    extract,
    fid,
    isc,
    kid,
    metric_name,
    prc,
)
from tests.metrics.torch_fidelity_reference import custom, pictures, reference_metrics, save


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics(mu, sigma, count=10**6):
    return Statistics(np.asarray(mu, float), np.asarray(sigma, float), count)


# equal to torch-fidelity


def gathered(extractor, pixels, batch_size, world):
    """Return the features of ``world`` processes, gathered out of order and with padding."""
    images = InMemoryImages(pixels)
    parts = [
        extract(extractor, images, shard_range(len(pixels), rank, world, batch_size=batch_size),
                batch_size=batch_size, device="cpu")
        for rank in range(world)
    ]  # fmt: skip
    padding = extract(extractor, images, range(batch_size), batch_size=batch_size, device="cpu")
    return concatenate([*parts[::-1], padding], len(pixels))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [64, 50])
def test_scores_of_a_custom_extractor_equal_torch_fidelity(tmp_path, world, batch_size):
    extractor = custom(tmp_path / "net.pt", 3)
    samples, real = pictures(333, 3, 12, 10, dark=9), pictures(420, 3, 12, 10, seed=1)
    expected = reference_metrics(
        extractor, samples, real, fid=True, kid=True, isc=True, prc=True,
        batch_size=batch_size, kid_subset_size=333,
    )  # fmt: skip
    outputs, reference = (gathered(extractor, each, batch_size, world) for each in (samples, real))
    result = {
        **fid(outputs.features, reference.features).values,
        **kid(outputs.features, reference.features).values,
        **isc(outputs.logits).values,
        **prc(outputs.features, reference.features).values,
    }
    assert result == {
        "fid": expected["frechet_inception_distance"],
        "kid": expected["kernel_inception_distance_mean"],
        "kid_std": expected["kernel_inception_distance_std"],
        "isc": expected["inception_score_mean"],
        "isc_std": expected["inception_score_std"],
        "precision": expected["precision"],
        "recall": expected["recall"],
        "f_score": expected["f_score"],
    }
    assert result["fid"] > 1e-4 and result["isc"] > 1.01 and 0 < result["precision"] < 1


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_scores_of_pixels_equal_torch_fidelity(world):
    samples, real = pictures(1100, 1, 8, 8, dark=9), pictures(1050, 1, 8, 8, seed=1)
    expected = reference_metrics(Pixels(), samples, real, fid=True, kid=True, prc=True)
    outputs, reference = (gathered(Pixels(), each, 100, world).features for each in (samples, real))
    result = kid(outputs, reference)
    assert result.settings == {"subsets": 100, "subset_size": 1000, "seed": 2020}
    assert fid(outputs, reference).values == {"fid": expected["frechet_inception_distance"]}
    assert result.values == {
        "kid": expected["kernel_inception_distance_mean"],
        "kid_std": expected["kernel_inception_distance_std"],
    }
    assert prc(outputs, reference).values == {
        name: expected[name] for name in ("precision", "recall", "f_score")
    }


class Products(torch.nn.Module):
    """Two dot products, whose order of summation depends on the batch size."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(360, 1), torch.nn.Linear(360, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1).float()
        return torch.cat([self.first(flat), self.second(flat)], dim=1)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_several_processes_give_the_features_of_one(tmp_path, world):
    torch.manual_seed(0)
    save(Products(), tmp_path / "net.pt")
    extractor = Custom(path=str(tmp_path / "net.pt"))
    extractor.prepare("cpu")
    pixels = pictures(333, 3, 12, 10)
    together, alone = (gathered(extractor, pixels, 50, each) for each in (world, 1))
    assert torch.equal(together.features, alone.features)


def test_scores_with_another_seed_equal_torch_fidelity(tmp_path):
    extractor = custom(tmp_path / "net.pt", 3)
    samples, real = pictures(150, 3, 9, 9), pictures(1200, 3, 9, 9, seed=1)
    expected = reference_metrics(
        extractor, samples, real, kid=True, isc=True, rng_seed=7, kid_subset_size=150
    )
    outputs, reference = (gathered(extractor, each, 64, 1) for each in (samples, real))
    score = kid(outputs.features, reference.features, seed=7)
    assert score.values["kid"] == expected["kernel_inception_distance_mean"]
    assert score.values != kid(outputs.features, reference.features).values
    assert isc(outputs.logits, seed=7).values["isc"] == expected["inception_score_mean"]
    assert (score.num_samples, score.num_reference) == (150, 1200)
    assert score.settings == {"subsets": 100, "subset_size": 150, "seed": 7}


def test_large_sets_compute_distances_in_parts(monkeypatch):
    samples, real = normal(60, 5), normal(70, 5, seed=1)
    whole = prc(samples, real)
    assert 0 < whole.values["precision"] < 1
    from torch_fidelity import metric_prc

    def never(*_):
        raise AssertionError("all distances at once")

    monkeypatch.setattr(metric_prc, "calculate_precision_recall_full", never)
    monkeypatch.setattr("ddpm.metrics.scores._FULL", 69)
    assert prc(samples, real).values == whole.values
    monkeypatch.setattr("ddpm.metrics.scores._FULL", 70)
    with pytest.raises(AssertionError, match="all distances at once"):
        prc(samples, real)


# closed forms


def test_fid_of_gaussians_with_commuting_covariances():
    a = statistics([0, 1, 2], np.diag([1.0, 4, 9]))
    b = statistics([0, 3, 1], np.diag([4.0, 4, 1]))
    # |mu|^2 = 4 + 1; (1 - 2)^2 + 0 + (3 - 1)^2
    assert fid(a, b).values["fid"] == pytest.approx(5 + 5, abs=1e-12)
    assert fid(b, a).values["fid"] == pytest.approx(10, abs=1e-12)


def test_fid_of_gaussians_with_general_covariances():
    first, second = np.array([[2.0, 1], [1, 3]]), np.array([[5.0, -2], [-2, 1]])
    product = first @ second
    # of a 2x2 matrix with positive eigenvalues: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    expected = 1 + np.trace(first) + np.trace(second) - 2 * root
    result = fid(statistics([0, 0], first), statistics([0, 1], second)).values["fid"]
    assert result == pytest.approx(expected, rel=1e-12)


def test_fid_is_zero_for_equal_sets_and_the_squared_norm_of_a_shift():
    features = normal(500, 16)
    assert abs(fid(features, features).values["fid"]) < 1e-6
    shift = torch.zeros(16)
    shift[:3] = torch.tensor([3.0, -2, 1])
    assert fid(features + shift, features).values["fid"] == pytest.approx(14, abs=1e-4)


def test_fid_does_not_depend_on_the_order_of_images():
    samples, real = normal(300, 8), normal(200, 8, seed=1) * 1.5
    shuffled = samples[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert fid(shuffled, real).values["fid"] == pytest.approx(
        fid(samples, real).values["fid"], rel=1e-6
    )


def test_fid_of_a_single_feature():
    features = normal(400, 1)
    mu, sd = features.double().mean().item(), features.double().std().item()
    result = fid(features, statistics([0.5], [[4.0]])).values["fid"]
    assert result == pytest.approx((mu - 0.5) ** 2 + (sd - 2) ** 2, rel=1e-6)


def test_statistics_are_mean_and_unbiased_covariance():
    features = normal(50, 4)
    stats = Statistics.from_features(features)
    np.testing.assert_allclose(stats.mu, features.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats.sigma, torch.cov(features.double().T), rtol=1e-6)
    assert stats.num_images == 50 and stats.mu.dtype == np.float32
    assert fid(stats, features).values == fid(features, features).values


def test_kid_of_all_images_is_the_unbiased_estimate():
    samples, real = normal(30, 4).double(), normal(30, 4, seed=1).double() + 1

    def kernel(a, b):
        return (a @ b.T / 4 + 1) ** 3

    def off_diagonal(k):
        return (k.sum() - k.trace()) / (30 * 29)

    expected = off_diagonal(kernel(samples, samples)) + off_diagonal(kernel(real, real))
    expected = (expected - 2 * kernel(samples, real).mean()).item()
    result = kid(samples, real)
    assert result.values["kid"] == pytest.approx(expected, rel=1e-10)
    assert result.values["kid_std"] < 1e-10 * expected
    assert result.settings["subset_size"] == 30


@pytest.mark.parametrize(("classes", "score"), [(1, 1.0), (2, 2.0), (5, 5.0)])
def test_the_inception_score_of_confident_balanced_logits_is_the_number_of_classes(classes, score):
    logits = torch.full((classes * 400, 5), -100.0)
    logits[torch.arange(len(logits)), torch.arange(len(logits)) % classes] = 100.0
    result = isc(logits)
    assert result.values["isc"] == pytest.approx(score, rel=0.02)
    assert (result.num_reference, result.settings) == (None, {"splits": 10, "seed": 2020})
    assert isc(logits[:7]).settings["splits"] == 7


def test_precision_is_of_the_samples_and_recall_of_the_reference():
    real = torch.cat([normal(100, 3), normal(100, 3, seed=1) + 1000])
    result = prc(real[:100] * 1.0, real)
    assert result.values["precision"] == 1.0
    assert result.values["recall"] == pytest.approx(0.5)
    assert result.values["f_score"] == pytest.approx(2 / 3)
    swapped = prc(real, real[:100] * 1.0)
    assert (swapped.values["precision"], swapped.values["recall"]) == (0.5, 1.0)
    apart = prc(real[:100], real[100:]).values
    assert apart == {"precision": 0.0, "recall": 0.0, "f_score": 0.0}
    assert result.settings == {"neighbours": 3}


# names, warnings and errors


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (50_000, "fid"),
        (60_000, "fid"),
        (49_999, "fid_49999"),
        (5000, "fid_5k"),
        (1000, "fid_1k"),
        (1797, "fid_1797"),
        (999, "fid_999"),
        (2, "fid_2"),
    ],
)
def test_the_name_contains_a_small_number_of_samples(count, name):
    assert metric_name("fid", count) == name
    assert metric_name("kid", count) == name.replace("fid", "kid")


def error_of(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fid(normal(1, 3), normal(9, 3)), "num_samples=1: fid needs at least 2 samples"),
        (lambda: kid(normal(0, 3), normal(9, 3)), "num_samples=0: kid needs at least 2 samples"),
        (lambda: isc(normal(1, 3)), "num_samples=1: isc needs at least 2 samples"),
        (lambda: prc(normal(3, 3), normal(9, 3)), "num_samples=3: prc needs at least 4 samples"),
        (
            lambda: fid(normal(9, 3), normal(1, 3)),
            "reference: contains 1 images, and fid needs at least 2",
        ),
        (
            lambda: prc(normal(9, 3), normal(3, 3)),
            "reference: contains 3 images, and prc needs at least 4",
        ),
        (
            lambda: isc(None),
            "metrics=isc: the extractor returns no logits; leave isc out, or use "
            "extractor=inception",
        ),
        (
            lambda: kid(normal(9, 3), normal(9, 4)),
            "reference: has 4 features per image, the samples have 3; use images of one size and "
            "one extractor",
        ),
        (
            lambda: fid(normal(9, 3), statistics([0, 0], np.eye(2))),
            "reference: has 2 features per image, the samples have 3; use images of one size and "
            "one extractor",
        ),
        (
            lambda: fid(normal(2, 10_001), normal(2, 10_001)),
            "extractor: returns 10001 features per image; fid supports at most 10000, kid and prc "
            "any, and extractor=inception has 2048",
        ),
    ],
)  # fmt: skip
def test_invalid_inputs_are_reported(call, message):
    assert error_of(call) == message


def test_four_images_are_enough_for_all_metrics():
    samples, real = normal(4, 3), normal(4, 3, seed=1)
    assert all(math.isfinite(v) for v in fid(samples, real).values.values())
    assert all(math.isfinite(v) for v in kid(samples[:2], real[:2]).values.values())
    assert prc(samples, samples).values["precision"] == 1.0
    assert isc(normal(2, 3)).values["isc"] == 1.0  # one sample per split: no diversity


def test_few_samples_cause_a_warning():
    assert fid(normal(9, 9), normal(9, 9)).warnings == ()
    assert fid(normal(8, 9), normal(9, 9)).warnings == (
        "fid: 8 samples are fewer than the 9 features, so their covariance is singular; compare "
        "with numbers of equally many only",
    )
    assert fid(normal(9, 9), normal(8, 9)).warnings[0].startswith("fid: 8 reference images are")
    assert isc(normal(49, 5)).warnings == (
        "isc: a tenth of 49 samples is fewer than the 5 classes, so the score is too low",
    )
    assert isc(normal(50, 5)).warnings == ()
    assert check_metric("fid", None, None, 2048, None) == ()
    assert len(check_metric("fid", 2047, 2047, 2048, None)) == 2
