"""Training script of a classifier for extractor=custom, on a few coloured pictures."""

import runpy
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.metrics import Custom, NpzImages

SCRIPT = Path(__file__).parents[2] / "scripts" / "cifar_classifier.py"
TINY = ("--images", "24", "--batch-size", "12", "--width", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """16x16 noise with one bright channel, the class: 16 training and 4 test images per class."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 4)):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture = rng.integers(0, 100, (16, 16, 3), np.uint8)
                picture[..., channel] += 120
                Image.fromarray(picture).save(folder / f"{number}.png")
    return root


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    def call(name, *options, folder=data):
        path = tmp_path / name
        monkeypatch.setattr("sys.argv", ["", str(folder), str(path), *TINY, *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return path

    return call


def extractor(path):
    network = Custom(path=str(path))
    network.prepare("cpu")
    return network


def test_the_classifier_learns_and_its_outputs_do_not_depend_on_the_batch(run, tmp_path, capsys):
    network = extractor(run("a/net.pt", "--steps", "40", "--splits", str(tmp_path)))
    output = capsys.readouterr().out
    assert "accuracy on 12 test images: 100.00 %" in output
    assert "accuracy on 24 images of a and b: 100.00 %" in output
    assert f"16 features, sha256 {network.sha256[:12]}" in output
    assert (
        network.output_sizes((3, 16, 16), "cpu")
        == network.output_sizes((3, 21, 40), "cpu")
        == (16, 3)
    )
    images = NpzImages(str(tmp_path / "test.npz")).read(range(12))
    outputs = network.outputs(images)
    assert outputs["features"].dtype == outputs["logits"].dtype == torch.float32
    # Folder sorts its classes: blue, green, red
    assert outputs["logits"].argmax(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for index, image in enumerate(images):
        alone = network.outputs(image[None])
        for name, values in outputs.items():
            torch.testing.assert_close(alone[name][0], values[index], rtol=1e-5, atol=1e-5)


def test_the_splits_are_disjoint_and_balanced_over_classes(run, data, tmp_path):
    run("net.pt", "--steps", "1", "--splits", str(tmp_path))
    archives = {
        name: NpzImages(str(tmp_path / f"{name}.npz")) for name in ("test", "a", "b", "train")
    }
    images = {name: each.read(range(len(each))) for name, each in archives.items()}
    assert [len(each) for each in images.values()] == [12, 12, 12, 48]
    first = np.array(Image.open(data / "test" / "blue" / "0.png"))
    assert np.array_equal(images["test"][0].permute(1, 2, 0), first)
    for each in images.values():
        bright = each.float().mean((2, 3)).argmax(1)
        assert bright.bincount().tolist() == [len(each) // 3] * 3
    sets = {name: {image.numpy().tobytes() for image in each} for name, each in images.items()}
    assert sets["a"] | sets["b"] < sets["train"]
    assert not sets["a"] & sets["b"] and not sets["test"] & sets["train"]


def test_training_images_are_in_no_other_split(data, tmp_path):
    script = runpy.run_path(str(SCRIPT))
    arguments = []

    def train(images, labels, **options):
        arguments.extend([images, labels])
        return script["Classifier"](3, 3, 4).eval()

    script["work"].__globals__["train"] = train
    options = dict(images=23, steps=1, batch_size=2, width=4, seed=0, splits=tmp_path)
    script["work"](Namespace(data=data, out=tmp_path / "net.pt", **options))
    images, labels = arguments
    assert labels.bincount().tolist() == [7] * 3
    assert torch.equal(2 - labels, images.float().mean((2, 3)).argmax(1))  # blue, green, red
    training_images = {image.numpy().tobytes() for image in images}
    for name, count in (("test", 0), ("a", 0), ("b", 0), ("train", 21)):
        archive = NpzImages(str(tmp_path / f"{name}.npz"))
        others = {image.numpy().tobytes() for image in archive.read(range(len(archive)))}
        assert len(training_images & others) == count
    script["work"](Namespace(data=data, out=tmp_path / "net.pt", **options | {"seed": 1}))
    assert {image.numpy().tobytes() for image in arguments[2]} != training_images  # a random subset


def test_augmentation_flips_and_shifts_images():
    augmented = runpy.run_path(str(SCRIPT))["augmented"]
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[0, 0, 8, 6] = 200
    moved = augmented(image.expand(500, 1, 16, 16), torch.Generator().manual_seed(0), mirror=True)
    assert moved.dtype == torch.uint8 and moved.shape == (500, 1, 16, 16)
    assert (moved.flatten(1).sum(1) == 200).all()
    rows, columns = moved[:, 0].nonzero()[:, 1:].unbind(1)
    assert rows.unique().tolist() == list(range(5, 12))
    assert columns.unique().tolist() == list(range(3, 13))  # around 6, and mirrored around 9


def test_weights_are_a_function_of_the_options_and_the_seed(run):
    def weights(name, *options):
        # TorchScript numbers the classes of one process, so only the tensors are equal
        with zipfile.ZipFile(run(name, "--steps", "2", *options)) as archive:
            tensors = [part for part in archive.namelist() if part.startswith("archive/data/")]
            # four layers, the head, and num_batches_tracked of four normalizations
            assert len(tensors) == 22 + 4
            return {part: archive.read(part) for part in sorted(tensors)}

    first = weights("a.pt")
    assert weights("b.pt") == first
    other = weights("c.pt", "--seed", "1")
    assert other.keys() == first.keys() and other != first


def test_invalid_options_are_reported_in_one_line(run, tmp_path, capsys):
    def error_of(*options, **run_options):
        with pytest.raises(SystemExit) as caught:
            run("net.pt", *options, **run_options)
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "holds no folder train; put the pictures into train/CLASS/" in error_of(folder=tmp_path)
    assert "--images=27: 17 of each class are needed, with a and b, and one has 16" in error_of(
        "--images", "27"
    )
    assert "--images=2: a part of 2 images cannot have all of 3 classes" in error_of(
        "--images", "2"
    )
    assert "must be at least 1" in error_of("--steps", "0")
    assert "--seed must be at least 0" in error_of("--seed", "-1")
    assert not (tmp_path / "net.pt").exists()
