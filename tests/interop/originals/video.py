"""Runs video-diffusion-pytorch, which must be on the path: ``make`` or ``load`` a checkpoint.

``python video.py make|load SETTINGS FOLDER`` trains a little and saves ``model-1.pt``, or loads
``raw.pt`` and ``ema.pt``; either way it writes what the networks then answer to ``<stage>.npz``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from walk import ddim

FRAMES, SIZE, BATCH = 3, 8, 2


def trainer(told, folder):
    """Its trainer, at its defaults but for what makes it small, on grey GIFs."""
    from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D

    torch.Tensor.cuda = lambda self: self  # it takes a GPU for granted
    torch.manual_seed(0)
    gifs = folder / "gifs"
    gifs.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        values = rng.integers(100, 156, (FRAMES, SIZE, SIZE), np.uint8)
        first, *rest = [Image.fromarray(frame) for frame in values]
        first.save(gifs / f"{number}.gif", save_all=True, append_images=rest)
    net = Unet3D(**told["network"])
    diffusion = GaussianDiffusion(
        net, image_size=SIZE, num_frames=FRAMES, channels=told["network"]["channels"],
        timesteps=told["steps"],
    )  # fmt: skip
    return Trainer(
        diffusion, str(gifs), results_folder=str(folder), train_num_steps=told["trained"],
        train_batch_size=2, train_lr=1e-2, ema_decay=0.5, step_start_ema=0, update_ema_every=1,
    )  # fmt: skip


@torch.no_grad()
def answers(made, told):
    """What both networks say of fixed inputs, and where DDIM leads with the averaged one."""
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, told["network"]["channels"], FRAMES, SIZE, SIZE)
    x, start = torch.randn(2, *shape, generator=generator)
    t = torch.tensor([3, told["steps"] - 1])
    found = {"x": x, "t": t, "x_T": start, "step": torch.tensor(made.step)}
    for which, diffusion in (("raw", made.model), ("ema", made.ema_model)):
        diffusion.eval()
        found[which] = diffusion.denoise_fn(x, t)
    process, net = made.ema_model, made.ema_model.denoise_fn
    found["sample"] = ddim(
        lambda x, t: net(x, torch.full((BATCH,), t)),
        start,
        process.alphas_cumprod.double(),
        told["calls"],
        (process.sqrt_alphas_cumprod.double(), process.sqrt_one_minus_alphas_cumprod.double()),
    )
    return found


def main(stage, settings, folder):
    """Make or load."""
    torch.use_deterministic_algorithms(True)
    told, folder = json.loads(settings), Path(folder)
    made = trainer(told, folder)
    if stage == "make":
        made.train()
        made.save(1)
    else:  # state dicts: loaded into its networks, every name and shape theirs
        for which, diffusion in (("raw", made.model), ("ema", made.ema_model)):
            weights = torch.load(folder / f"{which}.pt", weights_only=True)
            diffusion.denoise_fn.load_state_dict(weights, strict=True)
    found = answers(made, told)
    np.savez(folder / f"{stage}.npz", **{name: each.numpy() for name, each in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
