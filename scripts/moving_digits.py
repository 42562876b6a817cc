"""Make videos of the bundled handwritten digits that move in a square and bounce off its edges.

They need no download, and errors of motion in samples of a video model are easy to see:

    python scripts/moving_digits.py --out data/moving_digits.npz
    ddpm-train data=video data.path=data/moving_digits.npz model=unet3d

The .npz holds arr_0, the videos, uint8 (N, 1, F, H, W), and for videos of one digit labels (N,),
the digits, for data.class_cond=true. The same options give the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddpm.data import Digits
from ddpm.files import replacing

SLOWEST, FASTEST = 1.0, 2.0  # pixels per frame, so that no digit stands still


def moving_digits(
    num: int, frames: int, size: int, digits: int, seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return ``num`` videos ``(N, 1, frames, size, size)`` and the digits ``(N, digits)`` in them.

    Each digit starts at a random place and moves in a random direction, reflected by the edges;
    places are rounded to whole pixels. Where digits overlap, the brighter pixel is visible.
    """
    generator = np.random.default_rng(seed)
    bundled = Digits(class_cond=True)
    chosen = generator.integers(len(bundled), size=num * digits)
    pixels, labels = bundled.fetch(chosen.tolist(), [0] * len(chosen))
    assert labels is not None
    images = pixels[:, 0].numpy().reshape(num, digits, *bundled.shape[1:])
    room = size - images.shape[-1]
    start = generator.uniform(0, room, (num, digits, 1, 2))
    angle = generator.uniform(0, 2 * np.pi, (num, digits, 1, 1))
    speed = generator.uniform(SLOWEST, FASTEST, (num, digits, 1, 1))
    step = speed * np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
    straight = start + step * np.arange(frames)[:, None]
    places = np.rint(room - np.abs(straight % (2 * room) - room)).astype(int)
    videos = np.zeros((num, 1, frames, size, size), np.uint8)
    for video, image, path in zip(videos[:, 0], images, places, strict=True):
        for digit, corners in zip(image, path, strict=True):
            for frame, (top, left) in zip(video, corners, strict=True):
                seen = frame[top : top + len(digit), left : left + len(digit)]
                np.maximum(seen, digit, out=seen)
    return videos, labels.numpy().reshape(num, digits)


def main() -> None:
    """Write the videos."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--num", type=int, default=2000, help="videos (2000)")
    parser.add_argument("--frames", type=int, default=8, help="frames of each (8)")
    parser.add_argument("--size", type=int, default=16, help="side of the square in pixels (16)")
    parser.add_argument("--digits", type=int, default=1, help="digits in each (1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of digits and motion (0)")
    options = parser.parse_args()
    if options.out.suffix != ".npz":
        parser.error(f"--out {options.out}: the name must end in .npz")
    if options.size < 9:
        parser.error(f"--size {options.size}: a digit is 8 wide and needs room to move; at least 9")
    if min(options.num, options.frames, options.digits) < 1 or options.seed < 0:
        parser.error("--num, --frames and --digits must be at least 1, and --seed at least 0")
    arguments = options.num, options.frames, options.size, options.digits, options.seed
    videos, shown = moving_digits(*arguments)
    with replacing(options.out) as aside, open(aside, "wb") as file:
        if options.digits == 1:
            np.savez_compressed(file, arr_0=videos, labels=shown[:, 0])
        else:
            np.savez_compressed(file, arr_0=videos)
    print(f"{options.out}: {options.num} videos of {options.frames} frames")


if __name__ == "__main__":
    main()
