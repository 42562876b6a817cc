"""Cached reference statistics: reused where the provenance matches, else recomputed or rejected."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ddpm.errors import ConfigError
from ddpm.metrics import (
    InMemoryImages,
    Pixels,
    cached_reference,
    concatenate,
    extract,
    fid,
    kid,
    load_reference,
)
from ddpm.metrics import reference as module
from ddpm.metrics.reference import find, keep, key_of, provenance
from tests.metrics.torch_fidelity_reference import custom, pictures


def error_of(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class CountingExtract:
    """Extracts features and counts the calls."""

    def __init__(self, extractor, images):
        self.extractor, self.images, self.calls = extractor, images, 0

    def __call__(self, count):
        self.calls += 1
        return extract(self.extractor, self.images, range(count), batch_size=16, device="cpu")


@pytest.fixture
def cached(tmp_path):
    """A cache with one file: (cache, extractor, images, reference)."""
    images = InMemoryImages(pictures(40, 1, 4, 4), "noise")
    compute = CountingExtract(Pixels(), images)
    reference = cached_reference(Pixels(), images, compute, cache=tmp_path / "cache")
    assert compute.calls == 1
    return tmp_path / "cache", Pixels(), images, reference


def file_of(cache) -> Path:
    (path,) = cache.iterdir()
    return path


def must_not_run(count):
    raise AssertionError("the reference was computed")


def assert_same(a, b):
    assert np.array_equal(a.statistics.mu, b.statistics.mu)
    assert a.statistics.mu.dtype == b.statistics.mu.dtype
    assert np.array_equal(a.statistics.sigma, b.statistics.sigma)
    assert a.statistics.num_images == b.statistics.num_images
    assert a.provenance == b.provenance


def test_a_reference_is_computed_once_and_then_read_from_the_cache(cached):
    cache, extractor, images, first = cached
    again = cached_reference(extractor, images, must_not_run, cache=cache, need_features=True)
    assert_same(first, again)
    assert torch.equal(first.features, again.features)
    samples = extractor(pictures(30, 1, 4, 4, seed=1))
    assert fid(samples, again.statistics) == fid(samples, first.features)
    assert kid(samples, again.features) == kid(samples, first.features)
    assert first.provenance == {
        "reference": {
            "source": "noise",
            "num_images": 40,
            "shape": [1, 4, 4],
            "sha256": images.sha256,
        },
        "extractor": {"name": "pixels", "sha256": Pixels.sha256, "features": 16},
        "resize": "none",
    }
    assert file_of(cache).name == f"{key_of(first.provenance)}.safetensors"
    assert file_of(cache).stat().st_mode & 0o044  # readable by others, according to the umask


def test_without_a_cache_nothing_is_written(tmp_path):
    images = InMemoryImages(pictures(5, 1, 2, 2))
    compute = CountingExtract(Pixels(), images)
    for calls in (1, 2):
        cached_reference(Pixels(), images, compute, cache=None)
        assert compute.calls == calls
    assert list(tmp_path.iterdir()) == []


def test_the_features_of_several_processes_make_the_same_file(cached, tmp_path):
    cache, extractor, images, _ = cached
    halves = [
        extract(extractor, images, indices, batch_size=16, device="cpu")
        for indices in (range(20, 40), range(21))  # one of them twice
    ]
    cached_reference(extractor, images, lambda _: concatenate(halves), cache=tmp_path / "other")
    assert file_of(tmp_path / "other").read_bytes() == file_of(cache).read_bytes()


def test_images_count_extractor_and_resizing_are_part_of_the_key(cached, tmp_path):
    cache, extractor, images, first = cached
    other = InMemoryImages(pictures(40, 1, 4, 4, seed=1))
    net = custom(tmp_path / "a.pt", 1)
    for each, source, count in (
        (extractor, other, None),
        (extractor, images, 39),
        (net, images, None),
    ):
        compute = CountingExtract(each, source)
        reference = cached_reference(each, source, compute, cache=cache, count=count)
        assert compute.calls == 1
        assert reference.statistics.num_images == (count or 40)
    retrained = Pixels()
    retrained.sha256 = "0" * 64
    assert find(cache, provenance(retrained, images)) is None
    resized = Pixels()
    resized.resize = "halved"
    assert find(cache, provenance(resized, images)) is None
    assert len(list(cache.iterdir())) == 4
    assert_same(cached_reference(extractor, images, must_not_run, cache=cache), first)


def test_the_path_of_the_images_is_not_part_of_the_key(cached):
    cache, extractor, images, first = cached
    moved = InMemoryImages(images.read(range(40)), "elsewhere")
    reference = cached_reference(extractor, moved, must_not_run, cache=cache)
    assert reference.provenance["reference"]["source"] == "elsewhere"
    assert reference.provenance["extractor"] == first.provenance["extractor"]


def test_large_features_are_not_cached_and_recomputed_on_demand(tmp_path, monkeypatch):
    images = InMemoryImages(pictures(40, 1, 4, 4))
    monkeypatch.setattr(module, "LARGEST_CACHED", 40 * 16 * 4 - 1)
    compute = CountingExtract(Pixels(), images)
    first = cached_reference(Pixels(), images, compute, cache=tmp_path)
    assert first.features is not None
    again = cached_reference(Pixels(), images, must_not_run, cache=tmp_path)
    assert_same(first, again)
    assert again.features is None
    again = cached_reference(Pixels(), images, compute, cache=tmp_path, need_features=True)
    assert compute.calls == 2 and again.features is not None
    monkeypatch.setattr(module, "LARGEST_CACHED", 40 * 16 * 4)
    cached_reference(Pixels(), images, compute, cache=tmp_path, need_features=True)
    assert (
        cached_reference(
            Pixels(), images, must_not_run, cache=tmp_path, need_features=True
        ).features
        is not None
    )


@pytest.mark.parametrize("damage", [0, 1, 100, "half", "end", "bit", "bomb", "folder"])
def test_a_damaged_file_is_reported_and_recomputed(cached, damage, capsys):
    cache, extractor, images, first = cached
    path = file_of(cache)
    whole = path.read_bytes()
    ends = {"half": len(whole) // 2, "end": len(whole) - 1}
    if damage == "bit":
        path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 16]) + whole[-4:])
    elif damage == "bomb":
        path.write_bytes((10**11).to_bytes(8, "little") + whole[8:])
    elif damage == "folder":
        path.unlink()
        path.mkdir()
        assert find(cache, provenance(extractor, images)) is None
        assert "cannot be used (" in capsys.readouterr().err
        return
    else:
        path.write_bytes(whole[: ends.get(damage, damage)])
    compute = CountingExtract(extractor, images)
    reference = cached_reference(extractor, images, compute, cache=cache)
    message = capsys.readouterr().err
    assert message.startswith(f"warning: {path} cannot be used (")
    assert message.endswith("); computing the reference again\n") and message.count("\n") == 1
    if damage == "bit":
        assert "(its content does not match its hash)" in message
    assert compute.calls == 1
    assert_same(reference, first)
    assert path.read_bytes() == whole
    assert_same(cached_reference(extractor, images, must_not_run, cache=cache), first)


def test_a_file_with_the_name_of_another_is_not_used(cached, capsys):
    cache, extractor, _, _ = cached
    other = InMemoryImages(pictures(40, 1, 4, 4, seed=1))
    wrong = cache / f"{key_of(provenance(extractor, other))}.safetensors"
    wrong.write_bytes(file_of(cache).read_bytes())
    compute = CountingExtract(extractor, other)
    cached_reference(extractor, other, compute, cache=cache)
    assert compute.calls == 1
    assert capsys.readouterr().err == (
        f"warning: {wrong} cannot be used (its provenance does not match its name); computing "
        "the reference again\n"
    )


def test_too_few_images_are_rejected_before_the_extraction(tmp_path):
    one = InMemoryImages(pictures(1, 1, 4, 4))
    assert error_of(lambda: cached_reference(Pixels(), one, must_not_run, cache=tmp_path)) == (
        "reference: contains 1 images; at least 2 are required"
    )
    assert error_of(
        lambda: cached_reference(Pixels(), one, must_not_run, cache=tmp_path, count=5)
    ) == ("reference: has 1 images, not 5; request fewer")


def test_an_unwritable_cache_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    images = InMemoryImages(pictures(5, 1, 2, 2))
    message = error_of(
        lambda: cached_reference(
            Pixels(), images, CountingExtract(Pixels(), images), cache=tmp_path / "file"
        )
    )
    assert "cannot be written (" in message


# reference=path


def test_a_cached_file_can_be_loaded_by_path(cached):
    cache, extractor, _, first = cached
    path = str(file_of(cache))
    reference, warnings = load_reference(path, extractor, 16, need_features=True)
    assert_same(reference, first)
    assert warnings == () and torch.equal(reference.features, first.features)


def test_a_cached_file_of_another_extractor_is_rejected(cached, tmp_path):
    cache, extractor, _, _ = cached
    path = file_of(cache)
    net = custom(tmp_path / "a.pt", 1)
    assert error_of(lambda: load_reference(str(path), net, 48)) == (
        f"reference={path}: was made with the extractor pixels, the samples with custom; use "
        "the images instead"
    )
    retrained = Pixels()
    retrained.sha256 = "0" * 64
    assert error_of(lambda: load_reference(str(path), retrained, 16, key="against")) == (
        f"against={path}: was made with the weights {Pixels.sha256[:12]}, the samples with "
        "000000000000; use the images instead"
    )
    resized = Pixels()
    resized.resize = "halved"
    assert error_of(lambda: load_reference(str(path), resized, 16)) == (
        f"reference={path}: was made with the resizing none, the samples with halved; use the "
        "images instead"
    )
    assert error_of(lambda: load_reference(str(path), extractor, 64)) == (
        f"reference={path}: its mu is 16 and its sigma 16x16, and the extractor has 64 features; "
        "use the extractor that it was made with"
    )
    bare = safetensors.torch.load_file(path)
    safetensors.torch.save_file(bare, path)
    assert error_of(lambda: load_reference(str(path), extractor, 16)) == (
        f"reference={path}: cannot be used (its content does not match its hash); use another "
        "file, or the images"
    )
    path.write_bytes(b"")
    assert error_of(lambda: load_reference(str(path), extractor, 16)).startswith(
        f"reference={path}: cannot be used ("
    )
    path.unlink()
    assert error_of(lambda: load_reference(str(path), extractor, 16)) == (
        f"reference={path}: file not found"
    )


def test_a_file_without_features_supports_fid_only(cached, tmp_path, monkeypatch):
    _, extractor, _, first = cached
    monkeypatch.setattr(module, "LARGEST_CACHED", 0)
    path = keep(tmp_path / "small", first)
    assert_same(load_reference(str(path), extractor, 16)[0], first)
    assert error_of(lambda: load_reference(str(path), extractor, 16, need_features=True)) == (
        f"reference={path}: contains no features, which kid and prc need; use the images, or "
        "metrics=[fid]"
    )


def test_a_file_with_inconsistent_counts_is_rejected(cached, tmp_path):
    _, extractor, _, first = cached
    path = keep(tmp_path / "forged", replace(first, features=first.features[:7]))
    assert error_of(lambda: load_reference(str(path), extractor, 16)) == (
        f"reference={path}: cannot be used (its features are of another number of images); use "
        "another file, or the images"
    )


def npz(path, mu, sigma, **more):
    np.savez(path, mu=mu, sigma=sigma, **more)
    return str(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_npz_of_pytorch_fid_gives_the_same_distance(cached, tmp_path, dtype):
    _, extractor, _, first = cached
    statistics = first.statistics
    mu, sigma = statistics.mu.astype(dtype), statistics.sigma.astype(dtype)
    path = npz(tmp_path / "s.npz", mu, sigma, mu_s=np.zeros(3))
    reference, warnings = load_reference(path, extractor, 16)
    assert reference.features is None and reference.statistics.num_images is None
    assert warnings == (f"{path} does not record its extractor and images; pixels is assumed",)
    samples = extractor(pictures(30, 1, 4, 4, seed=1))
    expected = fid(samples, first.statistics)
    score = fid(samples, reference.statistics)
    assert score.values["fid"] == pytest.approx(expected.values["fid"], rel=1e-4)
    assert (score.num_samples, score.num_reference) == (30, None)
    assert reference.provenance["extractor"]["features"] == 16
    assert len(reference.provenance["reference"]["sha256"]) == 64
    json.dumps(reference.provenance)


EYE = np.eye(4)


@pytest.mark.parametrize(
    ("mu", "sigma", "problem"),
    [
        (np.zeros(3), EYE, "its mu is 3 and its sigma 4x4, and the extractor has 4 features; use "
         "the extractor that it was made with"),
        (np.zeros(4), np.zeros(16), "its mu is 4 and its sigma 16, and the extractor has 4 "
         "features; use the extractor that it was made with"),
        (np.float64(1), EYE, "its mu is a number and its sigma 4x4, and the extractor has 4 "
         "features; use the extractor that it was made with"),
        (np.array([0, 0, np.nan, 0]), EYE, "its mu or sigma contains NaN or infinite values; "
         "create it again"),
        (np.zeros(4), np.full((4, 4), np.inf), "its mu or sigma contains NaN or infinite "
         "values; create it again"),
        (np.zeros(4), EYE + np.eye(4, k=1) * 1e-5, "its sigma is not a covariance: not symmetric, "
         "or negative"),
        (np.zeros(4), -EYE, "its sigma is not a covariance: not symmetric, or negative"),
        (np.zeros(4, int), EYE, "its mu and sigma are not real numbers; use another file, or the "
         "images"),
        (np.zeros(4), EYE * 1j, "its mu and sigma are not real numbers; use another file, or the "
         "images"),
    ],
)  # fmt: skip
def test_invalid_npz_statistics_are_rejected(tmp_path, mu, sigma, problem):
    path = npz(tmp_path / "s.npz", mu, sigma)
    assert error_of(lambda: load_reference(path, Pixels(), 4)) == f"reference={path}: {problem}"


def test_missing_npz_arrays_are_reported(tmp_path):
    path = npz(tmp_path / "s.npz", np.zeros(4), EYE)
    assert error_of(lambda: load_reference(path, Pixels(), 4, need_features=True)).startswith(
        f"reference={path}: contains no features, which kid and prc need"
    )
    np.savez(path, mu=np.zeros(4))
    assert error_of(lambda: load_reference(path, Pixels(), 4)) == (
        f"reference={path}: contains no mu and sigma (there are: mu)"
    )
    np.savez(path, mu=np.array([object()]), sigma=EYE)
    assert error_of(lambda: load_reference(path, Pixels(), 4)) == (
        f"reference={path}: cannot be read as an .npz (Object arrays cannot be loaded when "
        "allow_pickle=False); save it again"
    )


def test_unexpected_provenance_of_a_file_is_dropped(tmp_path):
    """A file from elsewhere must not add keys to the provenance of a metric."""
    images = InMemoryImages(pictures(9, 1, 4, 4))
    extractor = Pixels()
    compute = functools.partial(extract, extractor, images, range(9), batch_size=4, device="cpu")
    reference = cached_reference(extractor, images, lambda _: compute(), cache=None)
    forged = {**reference.provenance, "value": 0.001, "num_samples": 50_000, "seed": "any"}
    place = keep(tmp_path, module.Reference(reference.statistics, reference.features, forged))
    loaded, _ = load_reference(str(place), extractor, 16)
    assert set(loaded.provenance) == {"reference", "extractor", "resize"}
