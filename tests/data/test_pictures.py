from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from ddpm.data import Digits, ImageCodec, SequenceCodec


def test_the_grid_is_nearly_square_and_shows_enlarged_images_in_order():
    raw, _ = Digits().fetch(range(5), range(5))
    picture = ImageCodec((1, 8, 8)).picture(raw)
    assert picture.mode == "L"
    assert picture.size == (3 * 66 + 2, 2 * 66 + 2)  # 3 columns, 8 pixels enlarged to 64
    pixels = np.asarray(picture)
    for place, image in enumerate(raw):
        top, left = 2 + place // 3 * 66, 2 + place % 3 * 66
        cell = pixels[top : top + 64, left : left + 64]
        assert np.array_equal(cell, np.kron(image[0].numpy(), np.ones((8, 8), np.uint8)))
    assert np.unique(pixels[68:, 134:]).tolist() == [225]  # the empty sixth cell


@pytest.mark.parametrize(
    ("shape", "columns", "mode", "size"),
    [
        ((4, 3, 32, 32), None, "RGB", (2 * 66 + 2, 2 * 66 + 2)),
        ((4, 3, 32, 32), 4, "RGB", (4 * 66 + 2, 68)),
        ((4, 3, 32, 32), 9, "RGB", (4 * 66 + 2, 68)),
        ((1, 3, 70, 100), None, "RGB", (104, 74)),
        ((1, 4, 8, 8), None, "L", (4 * 64 + 4, 68)),  # channels side by side
    ],
)
def test_the_size_of_a_grid(shape, columns, mode, size):
    picture = ImageCodec(shape[1:]).picture(torch.zeros(shape, dtype=torch.uint8), columns=columns)
    assert (picture.mode, picture.size) == (mode, size)


def test_plots_show_at_most_sixteen_sequences_and_are_reproducible():
    codec = SequenceCodec((2, 50), -1, 1)
    x = torch.linspace(0, 6, 50)
    raw = torch.stack([torch.stack([(x + k).sin(), (x * k).cos()]) for k in range(20)])
    picture = codec.picture(raw)
    assert picture.size == (1040, 720)  # four rows of four
    assert np.array_equal(np.asarray(picture), np.asarray(codec.picture(raw[:16])))
    assert not np.array_equal(np.asarray(picture), np.asarray(codec.picture(raw.flip(0))))
    assert codec.picture(raw[:3], columns=3).size == (800, 240)


@pytest.mark.parametrize("codec", [ImageCodec((1, 8, 8)), SequenceCodec((1, 8), 0, 255)])
def test_an_animation_has_all_frames_and_a_longer_last_frame(tmp_path: Path, codec):
    frames = [torch.full((2, *codec.shape), 40 * k, dtype=torch.uint8) for k in range(6)]
    path = codec.animate(iter(frames), tmp_path / "new" / "way.gif", duration_ms=50, hold_ms=900)
    with Image.open(path) as gif:
        assert gif.format == "GIF"
        assert getattr(gif, "n_frames") == 6  # noqa: B009
        assert gif.info["loop"] == 0
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
        assert durations == [50] * 5 + [900]
        if codec.kind == "images":
            gif.seek(3)
            assert gif.convert("L").getpixel((20, 20)) == 120
    assert [file.name for file in path.parent.iterdir()] == ["way.gif"]
