"""Videos through the commands: conditions, previews as films, and error messages."""

import numpy as np
import pytest
from PIL import Image

MODEL = (
    "data=video",
    "data.path=clips.npz",
    "model=unet3d",
    "model.dim=8",
    "model.dim_mults=[1,2]",
    "model.attn_heads=1",
    "trainer.batch_size=4",
    "trainer.lr_warmup=0",
    "trainer.max_steps=2",
    "trainer.preview_every=2",
    "trainer.preview_samples=3",
    "sampler.steps=2",
)


@pytest.fixture
def clips(command):
    """Write eight clips (2 channels, 4 frames, 8x8) to the working folder; return them."""
    made = np.random.default_rng(0).integers(0, 256, (8, 2, 4, 8, 8), np.uint8)
    np.savez("clips.npz", arr_0=made)
    return made


def trained(command, *options):
    ended = command("train", "name=v", "data.order=ncfhw", *MODEL, *options)
    assert ended.status == 0, ended.err
    with Image.open("outputs/v/samples/step-00000002.gif") as film:
        assert film.n_frames == 4


def test_conditioning_frames_and_channels_are_unchanged(command, clips):
    trained(command, "data.condition.cond_frames=2", "data.condition.channels=[1]")
    np.save("first.npy", clips[3:5])
    options = ("num_samples=5", "batch_size=2", "steps=3", "out=s")
    ended = command("sample", "ckpt=outputs/v", "condition=first.npy", *options)
    assert ended.status == 0, ended.err
    with np.load("s/samples.npz") as file:
        drawn = file["arr_0"]
    expected = clips[[3, 4, 3, 4, 3]]  # in turn
    assert drawn.shape == (5, 2, 4, 8, 8) and drawn.dtype == np.uint8
    assert np.array_equal(drawn[:, :, :2], expected[:, :, :2])
    assert np.array_equal(drawn[:, 1], expected[:, 1])
    assert (drawn[:, 0, 2:] != expected[:, 0, 2:]).mean() > 0.9
    with Image.open("s/videos/00004.gif") as film:
        assert film.n_frames == 4 and film.size == (16, 8)  # two channels side by side
    with Image.open("s/grid.gif") as film:
        assert film.n_frames == 4


def test_a_learned_variance_with_given_channels(command, clips):
    trained(command, "data.condition.channels=[0]", "diffusion=iddpm")
    np.save("all.npy", clips[:1])
    ended = command("sample", "ckpt=outputs/v", "condition=all.npy", "sampler=ddpm", "steps=3",
                    "num_samples=2", "out=s")  # fmt: skip
    assert ended.status == 0, ended.err
    with np.load("s/samples.npz") as file:
        assert np.array_equal(file["arr_0"][:, 0], clips[[0, 0], 0])


def test_interpolation_of_videos_keeps_the_condition(command, clips):
    trained(command, "data.condition.cond_frames=1")
    np.save("a.npy", clips[:1])
    np.save("b.npy", clips[1:2])
    ended = command("interpolate", "ckpt=outputs/v", "a=a.npy", "b=b.npy", "num_frames=3",
                    "steps=2", "out=i")  # fmt: skip
    assert ended.status == 0, ended.err
    with np.load("i/samples.npz") as file:
        frames = file["arr_0"]
    assert np.array_equal(frames[[0, 2], :, 0], clips[:2, :, 0])
    middle = clips[:2, :, 0].astype(float).mean(0)
    assert np.abs(frames[1, :, 0] - middle).max() <= 1
    ended = command("interpolate", "ckpt=outputs/v", "a=1", "b=b.npy")
    assert ended.status == 1
    assert ended.line == (
        "ddpm-interpolate: a=1: a seed lacks the conditioning entries of this model; use files "
        "for a and b"
    )


def test_errors_of_a_missing_or_superfluous_condition(command, clips, trained_digits):
    ended = command("sample", f"ckpt={trained_digits}", "condition=clips.npz")
    assert (ended.status, ended.line) == (
        1,
        "ddpm-sample: condition=clips.npz: the model is not conditioned on data; leave it out, or "
        "train with data.condition",
    )
    trained(command, "data.condition.cond_frames=1")
    ended = command("sample", "ckpt=outputs/v")
    assert (ended.status, ended.line) == (
        1,
        "ddpm-sample: condition: is missing: the model is conditioned on part of the data; name a "
        "file of it",
    )
    ended = command("sample", "ckpt=outputs/v", "condition=none.gif")
    assert ended.status == 1
    assert ended.line.startswith("ddpm-sample: condition=none.gif: ")


@pytest.fixture
def trained_digits(command, tiny):
    ended = command("train", "name=tiny", "trainer.max_steps=1", *tiny)
    assert ended.status == 0, ended.err
    return "outputs/tiny"
