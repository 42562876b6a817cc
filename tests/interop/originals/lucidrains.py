"""Runs denoising-diffusion-pytorch, which must be on the path: ``make`` or ``load`` a checkpoint.

``python lucidrains.py make|load SETTINGS FOLDER`` trains a little and saves ``model-1.pt``, or
loads ``model-2.pt``; either way it writes what the networks then answer to ``<stage>.npz``.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZE, BATCH = 8, 2


def package(dims):
    """The module of pictures or of sequences; what only measuring them needs is left out."""
    for name in ("pytorch_fid", "pytorch_fid.fid_score", "pytorch_fid.inception"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["pytorch_fid.fid_score"].calculate_frechet_distance = None
    sys.modules["pytorch_fid.inception"].InceptionV3 = None
    name = "denoising_diffusion_pytorch"
    module = importlib.import_module(f"{name}.{name}{'_1d' if dims == 1 else ''}")
    module.cpu_count = lambda: 0  # no processes that load data
    return module


def trainer(told, folder):
    """Its trainer, at its defaults but for what makes it small, on grey data."""
    module = package(told["dims"])
    torch.manual_seed(0)
    options = {
        "train_num_steps": told["trained"], "train_batch_size": 16, "train_lr": 1e-2,
        "num_samples": 4, "save_and_sample_every": 1000, "results_folder": str(folder),
    }  # fmt: skip
    process = {"sampling_timesteps": told["calls"], **told["process"]}
    if told["dims"] == 1:
        net = module.Unet1D(**told["network"])
        diffusion = module.GaussianDiffusion1D(net, seq_length=SIZE, **process)
        sequences = 0.4 + 0.2 * torch.rand(64, told["network"]["channels"], SIZE)
        return module.Trainer1D(diffusion, module.Dataset1D(sequences), **options)
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(100):  # fewer it does not take
        values = rng.integers(100, 156, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(values).save(pictures / f"{number}.png")
    net = module.Unet(**told["network"])
    diffusion = module.GaussianDiffusion(net, image_size=SIZE, **process)
    return module.Trainer(diffusion, str(pictures), calculate_fid=False, **options)


@torch.no_grad()
def answers(made, told):
    """What both networks say of fixed inputs, and what the averaged one makes of fixed noise."""
    shape = (BATCH, told["network"]["channels"], *[SIZE] * told["dims"])
    generator = torch.Generator().manual_seed(1)
    x, known = torch.randn(2, *shape, generator=generator)
    t = torch.tensor([3, 640])
    found = {"x": x, "t": t, "step": torch.tensor(made.step)}
    for which, diffusion in (("raw", made.model), ("ema", made.ema.ema_model)):
        diffusion.eval()
        found[which] = diffusion.model(x, t)
        if told["network"].get("self_condition"):
            found["known"] = known
            found[f"{which}_known"] = diffusion.model(x, t, known)
    for draw in (torch.randn, made.ema.ema_model.ddim_sample):  # its first numbers are x_T
        torch.manual_seed(2)
        found["x_T" if draw is torch.randn else "sample"] = draw(shape)
    return found


def main(stage, settings, folder):
    """Make or load."""
    torch.use_deterministic_algorithms(True)
    told, folder = json.loads(settings), Path(folder)
    made = trainer(told, folder)
    if stage == "make":
        made.train()
        with torch.no_grad():  # it copies for its first hundred steps; so let it be another
            for value in made.ema.ema_model.parameters():
                value.add_(0.05 * value.std().nan_to_num() * torch.randn_like(value))
        made.save(1)
    else:
        made.load(2)
    found = answers(made, told)
    if stage == "load":  # its optimizer goes on as well
        made.train_num_steps = made.step + 1
        made.train()
        found["went_on"] = torch.tensor(made.step)
    np.savez(folder / f"{stage}.npz", **{name: each.numpy() for name, each in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
