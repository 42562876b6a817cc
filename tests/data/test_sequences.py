import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.data import Sequences, codec_from_state
from ddpm.errors import ConfigError

VALUES = np.random.default_rng(0).normal(3, 5, (7, 2, 10)).astype(np.float32)


def save(path: Path, **arrays: np.ndarray) -> str:
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    else:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    return str(path)


def test_the_measured_range_is_mapped_to_the_bounds(tmp_path: Path):
    np.save(tmp_path / "a.npy", VALUES)
    data = Sequences(path=str(tmp_path / "a.npy"))
    assert (len(data), data.shape, data.in_memory) == (7, (2, 10), True)
    assert (data.num_classes, data.class_names) == (None, None)
    state = data.codec.state()
    assert (state["low"], state["high"]) == (float(VALUES.min()), float(VALUES.max()))
    raw, labels = data.fetch([6, 0, 6], [1, 2, 3])
    assert labels is None
    assert np.array_equal(raw.numpy(), VALUES[[6, 0, 6]])
    x = data.codec.encode(torch.from_numpy(VALUES))
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert torch.allclose(data.codec.decode(x), torch.from_numpy(VALUES), atol=1e-5)


def test_a_declared_range(tmp_path: Path):
    np.save(tmp_path / "a.npy", VALUES)
    data = Sequences(path=str(tmp_path / "a.npy"), low=-100, high=60)
    state = data.codec.state()
    assert (state["low"], state["high"]) == (-100.0, 60.0)
    assert data.codec.encode(torch.full((1, 2, 10), -20.0)).unique().tolist() == [0.0]
    half = Sequences(path=str(tmp_path / "a.npy"), low=-100).codec.state()
    assert (half["low"], half["high"]) == (-100.0, float(VALUES.max()))


def test_arrays_of_two_axes_have_one_channel_and_become_float32(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.arange(12).reshape(3, 4))
    data = Sequences(path=str(tmp_path / "a.npy"))
    assert data.shape == (1, 4)
    raw, _ = data.fetch([2], [0])
    assert raw.dtype == torch.float32
    assert raw.tolist() == [[[8.0, 9.0, 10.0, 11.0]]]


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
@pytest.mark.parametrize(
    ("names", "key"),
    [(["arr_0"], None), (["waves"], None), (["arr_0", "other"], None), (["b", "a"], "a")],
)
def test_the_array_is_that_of_the_key_or_arr_0_or_the_only_one(tmp_path, suffix, names, key):
    selected = key or names[0]
    arrays = {name: VALUES if name == selected else VALUES * 2 for name in names}
    data = Sequences(path=save(tmp_path / f"a{suffix}", **arrays), key=key)
    assert np.array_equal(data.fetch(range(7), range(7))[0].numpy(), VALUES)


def test_tensors_of_other_float_types(tmp_path: Path):
    torch.save(torch.from_numpy(VALUES).to(torch.bfloat16).requires_grad_(), tmp_path / "a.PT")
    data = Sequences(path=str(tmp_path / "a.PT"))
    assert np.allclose(data.fetch([0], [0])[0], VALUES[:1], rtol=0.01)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
@pytest.mark.parametrize("name", ["labels", "arr_1"])
def test_labels_are_read_from_the_same_file(tmp_path: Path, suffix: str, name: str):
    numbers = np.array([2, 0, 1, 2, 3, 3, 0])
    path = save(tmp_path / f"a{suffix}", arr_0=VALUES, **{name: numbers})
    data = Sequences(path=path, class_cond=True)
    assert (data.num_classes, data.class_names) == (4, ["0", "1", "2", "3"])
    _, labels = data.fetch([4, 0], [0, 0])
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == [3, 2]
    assert Sequences(path=path).fetch([4], [0])[1] is None


def test_labels_may_be_names(tmp_path: Path):
    names = np.array(["up", "down", "up", "up", "flat", "up", "up"])
    data = Sequences(path=save(tmp_path / "a.npz", x=VALUES, labels=names), class_cond=True)
    assert (data.num_classes, data.class_names) == (3, ["down", "flat", "up"])
    assert data.fetch([0, 1, 4], [0, 0, 0])[1].tolist() == [2, 0, 1]  # pyright: ignore


BROKEN = VALUES.copy()
BROKEN[0, 0, :3] = [np.nan, np.inf, -np.inf]
SEVEN = np.zeros(7, np.int64)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": VALUES[0, 0]}, {}, "path=FILE: has the shape (10,); it must be (N, channels,"),
        ({"x": VALUES[None]}, {}, "path=FILE: has the shape (1, 7, 2, 10); it must be"),
        ({"x": VALUES[:0]}, {}, "path=FILE: has the shape (0, 2, 10); it must be"),
        ({"x": BROKEN}, {}, "path=FILE: 3 of its 140 values are NaN or infinite; remove or"),
        ({"x": VALUES * 1j}, {}, "path=FILE: contains values of type complex64; save real numbers"),
        ({"x": np.full((2, 3), 4.0)}, {}, "low: the range from 4 to 4 for the values"),
        ({"x": VALUES}, {"low": -1.0}, "low=-1.0: FILE contains values down to -8.82652; lower"),
        ({"x": VALUES}, {"high": 2.0}, "high=2.0: FILE contains values up to 13.012; raise"),
        ({"a": VALUES, "b": VALUES}, {}, "key: FILE has neither arr_0 nor a single array; set "
         "data.key to one of: a, b"),
        ({"a": VALUES}, {"key": "b"}, "key=b: not found in FILE; use one of: a"),
        ({"a": VALUES}, {"class_cond": True}, "class_cond=true: FILE contains no labels; add an "
         "array"),
        ({"a": VALUES, "labels": SEVEN[:3]}, {"class_cond": True}, "class_cond=true: FILE contains "
         "labels of shape (3,); they must be (7,)"),
        ({"a": VALUES, "labels": SEVEN - 1}, {"class_cond": True}, "class_cond=true: FILE contains "
         "labels that are neither whole numbers from 0"),
        ({"a": VALUES, "labels": SEVEN + 0.5}, {"class_cond": True}, "class_cond=true: FILE "
         "contains labels that are neither whole numbers from 0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_errors_of_invalid_arrays(tmp_path, arrays, options, message, suffix):
    path = save(tmp_path / f"a{suffix}", **arrays)
    with pytest.raises(ConfigError) as caught:
        Sequences(path=path, **options)
    assert str(caught.value).replace(path, "FILE").startswith(message)


def test_errors_of_keys_and_labels_for_a_file_of_one_array(tmp_path: Path):
    np.save(tmp_path / "a.npy", VALUES)
    path = str(tmp_path / "a.npy")
    with pytest.raises(ConfigError, match="contains one array without a name; omit"):
        Sequences(path=path, key="x")
    with pytest.raises(ConfigError, match="contains no labels; save an "):
        Sequences(path=path, class_cond=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.npy", None, "no such file"),
        ("a.csv", b"1,2", "unknown kind of file; save it as one of .npy, .npz, .pt"),
        ("a.npy", b"", "cannot be read ("),
        ("a.npy", b"\x93NUMPY\x01\x00garbage", "cannot be read ("),
        ("a.npz", b"PK\x03\x04 and no more", "cannot be read ("),
        ("a.pt", b"PK\x03\x04 and no more", "cannot be read ("),
    ],
)
def test_errors_of_unreadable_files(tmp_path: Path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Sequences(path=str(path))
    assert str(caught.value).startswith(f"path={path}: {message}")
    assert "\n" not in str(caught.value)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["a.pt", "zip.pt", "a.npy", "pickle.npy", "a.npz"])
def test_code_in_files_is_not_executed(tmp_path: Path, name: str):
    mark, path = tmp_path / "executed", tmp_path / name
    malice = Malicious(mark)
    if name == "zip.pt":
        torch.save({"x": malice}, path)
    elif name == "a.npy":
        np.save(path, np.array([malice], dtype=object), allow_pickle=True)
    elif name == "a.npz":
        np.savez(path, np.array([malice], dtype=object))
    else:
        path.write_bytes(pickle.dumps(malice))
    with pytest.raises(ConfigError) as caught:
        Sequences(path=str(path))
    assert caught.value.key == "path"
    assert not mark.exists()
    pickle.loads(pickle.dumps(malice))  # executes the code
    assert mark.exists()


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        (
            (7, 128, 2),
            "whose last axis is the shorter one; set data.axes=NCL for 128 channels, length 2, or "
            "data.axes=NLC for 2 channels, length 128",
        ),
        (
            (3, 2, 1),
            "whose last axis is the shorter one; set data.axes=NCL for 2 channels, length 1, or "
            "data.axes=NLC for 1 channel, length 2",
        ),
        (
            (8, 28, 28),
            "which may be images; save images as PNG files for data=folder; for sequences of 28 "
            "channels, length 28, set data.axes=NCL or data.axes=NLC",
        ),
    ],
)
def test_ambiguous_axes_must_be_set(tmp_path: Path, shape, problem):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.save(tmp_path / "a.npy", values)
    path = str(tmp_path / "a.npy")
    with pytest.raises(ConfigError) as caught:
        Sequences(path=path)
    assert str(caught.value) == f"axes: {path} has the shape {shape}, {problem}"
    first = Sequences(path=path, axes="NCL")
    last = Sequences(path=path, axes="NLC")
    assert (first.shape, last.shape) == (shape[1:], shape[:0:-1])
    assert np.array_equal(first.fetch([2], [0])[0][0], values[2])
    assert np.array_equal(last.fetch([2], [0])[0][0], values[2].T)


@pytest.mark.parametrize("shape", [(7, 2, 128), (7, 4, 4), (7, 1, 1), (7, 9)])
def test_unambiguous_axes_are_channels_and_length(tmp_path: Path, shape):
    np.save(tmp_path / "a.npy", np.arange(np.prod(shape)).reshape(shape))
    data = Sequences(path=str(tmp_path / "a.npy"))
    assert data.shape == (shape[1:] if len(shape) == 3 else (1, 9))
    assert "axes" not in data.codec.state()  # as in the checkpoints of earlier versions
    again = Sequences(path=str(tmp_path / "a.npy"), axes="NCL")
    assert again.codec.state() == data.codec.state()


def test_written_files_have_the_axes_of_the_data(tmp_path: Path):
    values = VALUES.swapaxes(1, 2)
    np.save(tmp_path / "a.npy", values)
    data = Sequences(path=str(tmp_path / "a.npy"), axes="NLC")
    assert data.codec.state()["axes"] == "NLC"
    codec = codec_from_state(data.codec.state())
    assert codec.state() == data.codec.state()
    raw, _ = data.fetch(range(7), range(7))
    for name, format in (("samples.npy", "npy"), ("samples.npz", "npz")):
        codec.write(raw, tmp_path, format=format)
        again = Sequences(path=str(tmp_path / name), axes="NLC")
        assert torch.equal(again.fetch(range(7), range(7))[0], raw)
    assert np.array_equal(np.load(tmp_path / "samples.npy"), values)
    np.save(tmp_path / "one.npy", values[3])
    assert np.array_equal(codec.read(str(tmp_path / "one.npy")), VALUES[3])
    np.save(tmp_path / "one.npy", VALUES[3])
    problem = (
        r"has the shape \(2, 10\), but the model's sequences \(10, 2\) \(length, channels\); cut"
    )
    with pytest.raises(ConfigError, match=problem):
        codec.read(str(tmp_path / "one.npy"))
    assert codec.describe_count(2000) == "2,000 sequences of 2 channels, length 10"
    with pytest.raises(ConfigError, match="axes=LNC: must be NCL or NLC"):
        codec_from_state({**codec.state(), "axes": "LNC"})
