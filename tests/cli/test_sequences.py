"""A sequence model trained on sines of random phase."""

import numpy as np
import pytest
from PIL import Image


def sines(count, cycles, seed):
    """Return sines and cosines (count, 2, 32) of random phase with ``cycles`` periods."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, (count, 1))
    angle = phase + 2 * np.pi * cycles * np.arange(32) / 32
    return 3.0 * np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


@pytest.mark.slow
def test_samples_have_the_spectrum_of_the_data(command):
    np.save("waves.npy", sines(512, cycles=3, seed=0))
    ended = command(
        "train", "data=sequence", "data.path=waves.npy", "model=unet1d", "model.dim=16",
        "model.dim_mults=[1,2]", "trainer.max_steps=600", "trainer.batch_size=32", "name=w",
        "trainer.lr=2e-3", "trainer.lr_warmup=20", "trainer.preview_every=600", "sampler.steps=10",
        "trainer.preview_samples=4", "trainer.ema_decay=0.99", "trainer.log_every=50",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert Image.open("outputs/w/samples/step-00000600.png").width > 300
    ended = command("sample", "ckpt=outputs/w", "num_samples=32", "steps=50", "out=s")
    assert ended.status == 0, ended.err
    drawn = np.load("s/samples.npy")
    assert drawn.shape == (32, 2, 32) and drawn.dtype == np.float32
    power = np.abs(np.fft.rfft(drawn, axis=-1)) ** 2
    assert (power.argmax(-1) == 3).mean() >= 0.95
    share = power[..., 3].sum() / power.sum()
    assert share > 0.9, f"only {share:.2f} of the power at the data's frequency"
    # Of 3 sin, the mean square is 4.5; sine and cosine of one phase are uncorrelated.
    assert abs((drawn**2).mean() - 4.5) < 0.5
    assert abs((drawn[:, 0] * drawn[:, 1]).mean()) < 0.5
    # The phases are spread over the circle, not memorized.
    phases = np.angle(np.fft.rfft(drawn[:, 0])[:, 3])
    assert abs(np.exp(1j * phases).mean()) < 0.5
    ended = command(
        "interpolate", "ckpt=outputs/w", "a=1", "b=2", "out=i", "num_frames=3", "steps=10"
    )
    assert ended.status == 0 and np.load("i/samples.npy").shape == (3, 2, 32)
    np.save("one.npy", drawn[0])
    ended = command(
        "interpolate", "ckpt=outputs/w", "a=one.npy", "b=one.npy", "t=1", "out=j", "num_frames=2"
    )
    assert ended.status == 0 and np.abs(np.load("j/samples.npy")[0] - drawn[0]).max() < 0.5
