r"""Train a small classifier of CIFAR-10 whose features ``extractor=custom`` can measure with.

    python scripts/cifar_classifier.py DATA classifier.pt --splits splits
    ddpm-evaluate samples=splits/test.npz reference=splits/a.npz "metrics=[fid,kid,isc,prc]" \
        extractor=custom extractor.path=classifier.pt

DATA holds pictures of one size in train/CLASS/ and test/CLASS/. A network gives other features of
images it was trained on than of new ones, so it is trained on a random part of train alone, and two
more parts, a and b, as large as test, stay unseen; each has equally many images of every class.
``--splits`` writes test.npz, a.npz, b.npz and train.npz, all of train, which ``samples=`` and
``reference=`` read. The same options give the same weights on one machine with as many threads; the
file's own sha256 also depends on the paths and lines of the code, which TorchScript puts into it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.console import progress
from ddpm.data import Folder
from ddpm.errors import ConfigError, require
from ddpm.files import replacing

SHIFT = 3  # pixels that a training image is moved at most, each way


class Classifier(nn.Module):
    """Four convolutions; the means over space of the last one's outputs are the features."""

    def __init__(self, channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(channels, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 4 * width),
            *_convolution(4 * width, 4 * width),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Uint8 (B, C, H, W) to features (B, 4 * width) and logits (B, classes)."""
        features = self.layers(images.float() / 127.5 - 1).mean((2, 3))
        return features, self.head(features)


def _convolution(channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU()


def read(data: Path, part: str) -> tuple[Tensor, Tensor, list[str]]:
    """Return the images of a part.

    Args:
        data: the folder of the parts.
        part: ``train`` or ``test``.

    Returns:
        Uint8 images (N, C, H, W), labels int64 (N,) and the classes' names.

    Raises:
        ConfigError: the part does not exist, or its pictures differ in shape.
    """
    problem = f"holds no folder {part}; put the pictures into train/CLASS/ and test/CLASS/ there"
    require((data / part).is_dir(), "DATA", str(data), problem)
    folder = Folder(path=str(data / part), class_cond=True)
    images, labels = folder.fetch(range(len(folder)), [0] * len(folder))
    assert labels is not None and folder.class_names is not None
    return images, labels, folder.class_names


def parts(labels: Tensor, sizes: list[int], generator: torch.Generator) -> list[Tensor]:
    """Return indices of disjoint random parts with equally many images of each class.

    Args:
        labels: of all images, int64 (N,).
        sizes: of the parts, rounded down to multiples of the number of classes.
        generator: draws them.

    Returns:
        Sorted indices of each part, int64.

    Raises:
        ConfigError: a part has fewer images than there are classes, or a class too few for all.
    """
    order = torch.randperm(len(labels), generator=generator)
    classes = [order[labels[order] == label] for label in labels.unique()]
    each = [size // len(classes) for size in sizes]
    few, smallest = min(sizes), min(map(len, classes))
    problem = f"a part of {few} images cannot have all of {len(classes)} classes"
    require(min(each) > 0, "--images", sizes[0], problem)
    problem = f"{sum(each)} of each class are needed, with a and b, and one has {smallest}"
    require(sum(each) <= smallest, "--images", sizes[0], f"{problem}; use fewer")
    cut = [members[: sum(each)].split(each) for members in classes]
    return [torch.cat(part).sort().values for part in zip(*cut, strict=True)]


def augmented(images: Tensor, generator: torch.Generator, mirror: bool) -> Tensor:
    """Return images shifted by up to SHIFT pixels, with ``mirror`` a random half mirrored."""
    count, _, height, width = images.shape
    if mirror:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="replicate").byte()
    down, right = torch.randint(2 * SHIFT + 1, (2, count, 1, 1), generator=generator)
    rows = (down + torch.arange(height).view(1, -1, 1)).expand(count, height, width)
    columns = (right + torch.arange(width)).expand(count, height, width)
    which = torch.arange(count).view(-1, 1, 1)
    return padded[which, :, rows, columns].permute(0, 3, 1, 2)


def train(
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
    width: int,
    steps: int,
    batch: int,
    seed: int,
    mirror: bool = True,
) -> Classifier:
    """Return a trained classifier of uint8 images (N, C, H, W), in evaluation mode."""
    torch.manual_seed(seed)  # the weights
    network = Classifier(images.shape[1], classes, width)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps + 1)
    left = torch.empty(0, dtype=torch.int64)
    with progress(steps, "training", "step") as bar:
        for _ in range(steps):
            while len(left) < batch:
                left = torch.cat([left, torch.randperm(len(images), generator=generator)])
            chosen, left = left[:batch], left[batch:]
            _, logits = network(augmented(images[chosen], generator, mirror))
            loss = F.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images that are classified correctly."""
    right = 0
    with progress(len(images), "testing", "img") as bar:
        for some, true in zip(images.split(500), labels.split(500), strict=True):
            right += int((network(some)[1].argmax(1) == true).sum())
            bar.update(len(some))
    return right / len(images)


def save(network: Classifier, channels: int, path: Path) -> str:
    """Write the network as TorchScript; return the sha256 of the file."""
    example = torch.zeros(2, channels, 32, 32, dtype=torch.uint8)
    buffer = io.BytesIO()  # a file would have its own name inside
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
        # not `script`, which writes the constants of layers in an order that varies
        torch.jit.save(torch.jit.trace(network, example), buffer)
    with replacing(path) as aside:
        aside.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def save_images(path: Path, images: Tensor) -> None:
    """Write uint8 images (N, C, H, W) as the array arr_0 (N, H, W, C) of an .npz."""
    with replacing(path) as aside, open(aside, "wb") as file:
        np.savez(file, arr_0=images.permute(0, 2, 3, 1).numpy())
    print(f"{path}: {len(images)} images")


def work(options: argparse.Namespace) -> None:
    """Read, train, test and write; raise ConfigError for invalid options."""
    images, labels, names = read(options.data, "train")
    test_images, test_labels, test_names = read(options.data, "test")
    ours, theirs = (names, list(images.shape[1:])), (test_names, list(test_images.shape[1:]))
    problem = f"train has classes {names} and shape {ours[1]}, test {test_names} and {theirs[1]}"
    require(ours == theirs, "DATA", str(options.data), f"{problem}; make them the same")
    sizes = [options.images, len(test_images), len(test_images)]
    seen, a, b = parts(labels, sizes, torch.Generator().manual_seed(options.seed))
    if options.splits is not None:
        pictures = {"test": test_images, "a": images[a], "b": images[b], "train": images}
        for name, split in pictures.items():
            save_images(options.splits / f"{name}.npz", split)
    network = train(
        images[seen], labels[seen], classes=len(names), width=options.width,
        steps=options.steps, batch=options.batch_size, seed=options.seed,
    )  # fmt: skip
    sha256 = save(network, images.shape[1], options.out)
    unseen = torch.cat([a, b])
    tested = {
        "test images": (test_images, test_labels),
        "images of a and b": (images[unseen], labels[unseen]),
        "images it was trained on": (images[seen], labels[seen]),
    }
    for subset, (inputs, true) in tested.items():
        share = accuracy(network, inputs, true)
        print(f"accuracy on {len(inputs)} {subset}: {100 * share:.2f} %", flush=True)
    print(f"{options.out}: {4 * options.width} features, sha256 {sha256[:12]}...")


def main() -> None:
    """Run the script; an invalid option is reported in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="holds pictures in train/CLASS and test/CLASS")
    parser.add_argument("out", type=Path, help="the TorchScript file to write")
    parser.add_argument("--splits", type=Path, help="a folder for test, a, b and train.npz")
    parser.add_argument("--images", type=int, default=20_000, help="to train on (20000)")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps (1500)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (128)")
    parser.add_argument("--width", type=int, default=24, help="a quarter of the features (24)")
    parser.add_argument("--seed", type=int, default=0, help="of parts, weights and batches (0)")
    options = parser.parse_args()
    if min(options.images, options.steps, options.batch_size, options.width) < 1:
        parser.error("--images, --steps, --batch-size and --width must be at least 1")
    if options.seed < 0:
        parser.error("--seed must be at least 0")
    if options.out.is_dir():
        parser.error(f"{options.out} is a folder; use the path of a file")
    try:
        work(options)
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
