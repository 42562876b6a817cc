"""Pictures of samples by class: one row per class, its name at the left."""

import numpy as np
import pytest
import torch

from ddpm.data import ImageCodec, SequenceCodec
from ddpm.data.class_rows import class_rows, cyclic_class_rows
from ddpm.data.video_codec import VideoCodec

NAMES = [f"class {number}" for number in range(100)]


def test_cyclic_classes_are_rows_of_every_kth_sample():
    rows = cyclic_class_rows(11, [0, 1, 2, 3], NAMES)
    assert rows is not None
    assert [row.name for row in rows] == ["class 0", "class 1", "class 2", "class 3"]
    assert [row.items for row in rows] == [(0, 4, 8), (1, 5, 9), (2, 6, 10), (3, 7)]


def test_rows_are_ordered_by_class_and_have_at_most_sixteen_items():
    rows = cyclic_class_rows(40, [7, 2], NAMES)
    assert rows is not None
    assert [(row.name, len(row.items)) for row in rows] == [
        ("class 2", 16), ("", 4), ("class 7", 16), ("", 4)
    ]  # fmt: skip
    assert rows[0].items[:2] == (1, 3) and rows[3].items == (32, 34, 36, 38)


def test_a_single_class_fills_a_square():
    rows = cyclic_class_rows(16, [3], NAMES)
    assert rows is not None and [(row.name, len(row.items)) for row in rows] == [
        ("class 3", 4), ("", 4), ("", 4), ("", 4)
    ]  # fmt: skip


def test_more_than_sixteen_classes_share_rows():
    numbers = [(37 * item) % 100 for item in range(64)]
    rows = class_rows(numbers, NAMES)
    shown = [item for row in rows for item in row.items]
    assert sorted(shown) == list(range(64)) and [len(row.items) for row in rows] == [8] * 8
    assert [numbers[item] for item in shown] == sorted(numbers)
    first, last = numbers[shown[0]], numbers[shown[7]]
    assert rows[0].name == f"class {first} to class {last}"


@pytest.mark.parametrize(("classes", "names"), [(None, NAMES), ([0], None)])
def test_samples_without_classes_have_no_rows(classes, names):
    assert cyclic_class_rows(5, classes, names) is None


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_grid_shows_the_samples_of_a_class_in_its_row(channels, mode):
    raw = torch.randint(0, 200, (7, channels, 8, 8), generator=torch.Generator().manual_seed(0))
    raw = raw.to(torch.uint8)
    rows = cyclic_class_rows(
        7, [0, 1, 2], ["cat", "dog", "a bird with a name that is far too long"]
    )
    codec = ImageCodec((channels, 8, 8))
    picture = codec.picture(raw, rows=rows)
    pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    margin = picture.width - (3 * 66 + 2)
    assert picture.mode == mode and picture.height == 3 * 66 + 2 and 100 < margin < 250
    for row in range(3):
        for column in range(3):
            top, left = 2 + row * 66, margin + 2 + column * 66
            cell = pixels[top : top + 64, left : left + 64]
            item = row + 3 * column
            if item < 7:
                image = raw[item].numpy().repeat(8, axis=1).repeat(8, axis=2).transpose(1, 2, 0)
                assert np.array_equal(cell, image)
            else:
                assert np.unique(cell).tolist() == [225]
    names = [pixels[2 + 66 * row : 66 + 66 * row, :margin] for row in range(3)]
    assert all(name.min() < 60 for name in names)  # dark text
    assert not np.array_equal(names[0], names[1])
    assert all(np.unique(name[:, :4]).tolist() == [225] for name in names)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["é", "汉字", "two\nlines", "", "$x$ {y}"])
def test_names_with_unusual_characters(name):
    rows = cyclic_class_rows(4, [0, 1], [name, "b"])
    codec = ImageCodec((1, 8, 8))
    assert codec.picture(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), rows=rows).height == 134
    plain = SequenceCodec((1, 8), -1, 1).picture(torch.zeros(4, 1, 8), rows=rows)
    assert plain.size == (int(2.4 * 200 + 80), int(1.6 * 200 + 80))


def test_plots_have_one_row_for_each_of_at_most_eight_classes():
    codec = SequenceCodec((1, 20), -1, 1)
    raw = torch.linspace(-1, 1, 20).repeat(24, 1, 1) * torch.linspace(0, 1, 24)[:, None, None]
    three, twelve = (
        cyclic_class_rows(24, [0, 1, 2], NAMES),
        cyclic_class_rows(24, list(range(12)), NAMES),
    )
    assert codec.picture(raw, rows=three).size == (5 * 240 + 80, 3 * 160 + 80)
    assert codec.picture(raw, rows=twelve).size == (2 * 240 + 80, 8 * 160 + 80)


def test_rows_of_videos_in_gifs_and_film_strips(tmp_path):
    codec = VideoCodec((1, 3, 8, 8))
    raw = torch.arange(5, dtype=torch.uint8)[:, None, None, None, None].expand(5, 1, 3, 8, 8) * 40
    rows = cyclic_class_rows(5, [0, 1], ["a", "b"])
    picture = np.asarray(codec.picture(raw, rows=rows))
    assert picture.shape[0] == 2 * 66 + 2 and picture[34, -10] == 0 and picture[100, -10] == 40
    assert codec.write_motion_gif(raw, tmp_path / "a.gif", rows=rows).is_file()
