"""Runs diffusers, which must be on the path.

``python unet2d.py make|load SETTINGS FOLDER`` saves a pipeline with random weights, or loads one
that was exported; either way it writes outputs of its network and samples to ``<stage>.npz``.
``python unet2d.py reference tests/reference/diffusers_unet2d.npz`` writes the numbers of
``tests/interop/test_diffusers.py``, from the weights of ``tests.reference_cases.filled``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel

BATCH, SEED = 2, 5
GOOGLE = {
    "sample_size": 8, "block_out_channels": [8, 16, 16], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], "attention_head_dim": None,
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
    "norm_num_groups": 4,
}  # fmt: skip
REFERENCE = {
    "google": GOOGLE,
    "unconditional": {
        "sample_size": [8, 4], "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16],
        "layers_per_block": 2, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 8,
    },
    "adm": {
        "sample_size": 8, "out_channels": 6, "block_out_channels": [8, 16], "layers_per_block": 1,
        "down_block_types": ["AttnDownBlock2D", "ResnetDownsampleBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D"], "attention_head_dim": 4,
        "downsample_type": "resnet", "upsample_type": "resnet", "norm_num_groups": 4,
        "attn_norm_num_groups": 4, "resnet_time_scale_shift": "scale_shift", "num_class_embeds": 5,
    },
}  # fmt: skip
SCHEDULES = {
    "linear": {"beta_start": 0.001, "beta_end": 0.2},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.2},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid", "beta_start": 0.001, "beta_end": 0.2},
    "laplace": {"beta_schedule": "laplace"},
    "trained": {"trained_betas": [0.01, 0.02, 0.2, 0.5], "num_train_timesteps": 4},
    "zero_snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}


def inputs(config):
    """Return x, t and labels for a network."""
    generator = torch.Generator().manual_seed(SEED)
    size = config["sample_size"]
    shape = (BATCH, config["in_channels"], *([size] * 2 if isinstance(size, int) else size))
    classes = config["num_class_embeds"]
    labels = None if classes is None else torch.arange(BATCH) % classes
    return torch.randn(shape, generator=generator), torch.tensor([3, 17]), labels


@torch.no_grad()
def outputs(net):
    """Return inputs and outputs of a network, by name."""
    x, t, labels = inputs(dict(net.config))
    extra = {} if labels is None else {"y": labels}
    return {"x": x, "t": t, "out": net.eval()(x, t, labels).sample, **extra}


def samples(folder, calls, alpha_bar=None):
    """Return images in 0..1 of both pipelines of a folder, (B, C, *spatial).

    DDIM gets the option with which clipping changes the noise as well, as in other systems. With a
    table of alpha-bar there are also images of DDPM that computes with it in float64.
    """
    result = {}
    ddpm = DDPMPipeline.from_pretrained(folder)
    learned = ddpm.unet.config.out_channels != ddpm.unet.config.in_channels
    options = {"batch_size": BATCH, "output_type": "np"}
    all_steps = ddpm.scheduler.config.num_train_timesteps
    pipelines = {"ddpm": (ddpm, all_steps, {})}
    if alpha_bar is not None:
        exact = DDPMPipeline.from_pretrained(folder)
        exact.scheduler.alphas_cumprod = torch.tensor(alpha_bar, dtype=torch.float64)
        pipelines["exact_ddpm"] = exact, all_steps, {}
    if not learned and ddpm.scheduler.config.beta_schedule != "sigmoid":  # DDIM has neither
        ddim = DDIMPipeline.from_pretrained(folder)
        pipelines["ddim"] = ddim, calls, {"use_clipped_model_output": True}
    for name, (pipeline, steps, more) in pipelines.items():
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(SEED)
        images = pipeline(generator=generator, num_inference_steps=steps, **options, **more).images
        result[name] = torch.from_numpy(images).permute(0, 3, 1, 2)
    return result


def make(settings, folder):
    """Save a pipeline with random weights, and return its outputs and samples."""
    torch.manual_seed(0)
    net = UNet2DModel(**settings["unet"])
    for parameter in net.conv_out.parameters():  # a trained network amplifies rounding less
        parameter.data *= 0.3
    scheduler = DDPMScheduler(**settings["scheduler"])
    DDPMPipeline(net, scheduler).save_pretrained(folder / "pipeline")
    result = outputs(net)
    if "y" not in result:
        result |= samples(folder / "pipeline", settings["calls"])
    return {**result, "alpha_bar": scheduler.alphas_cumprod}


def load(settings, folder):
    """Return outputs and samples of a pipeline that was exported."""
    pipeline = DDPMPipeline.from_pretrained(folder / "exported")
    result = outputs(pipeline.unet)
    if "y" not in result:
        result |= samples(folder / "exported", settings["calls"], settings["alpha_bar"])
    return {**result, "alpha_bar": pipeline.scheduler.alphas_cumprod}


def reference(path):
    """Write the numbers of the quick tests."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from reference_cases import filled

    meta, arrays = {"networks": {}, "schedules": {}}, {}
    for name, options in REFERENCE.items():
        net = UNet2DModel(**options)
        shapes = [(each, list(value.shape)) for each, value in net.state_dict().items()]
        net.load_state_dict(filled(shapes))
        meta["networks"][name] = {"config": {**net.config, **options}, "shapes": shapes}
        arrays |= {f"{name}_{key}": value for key, value in outputs(net).items()}
        if name == "google":
            folder = Path("reference_pipeline")
            scheduler = DDPMScheduler(**SCHEDULER)
            DDPMPipeline(net, scheduler).save_pretrained(folder)
            meta["scheduler"] = SCHEDULER
            arrays |= samples(folder, 5)
    for name, options in SCHEDULES.items():
        options = {"num_train_timesteps": 20, **options}
        meta["schedules"][name] = options
        arrays[f"alpha_bar_{name}"] = DDPMScheduler(**options).alphas_cumprod
    np.savez_compressed(path, meta=json.dumps(meta), **{k: v.numpy() for k, v in arrays.items()})


SCHEDULER = {
    "num_train_timesteps": 20, "beta_start": 0.005, "beta_end": 0.4, "timestep_spacing": "trailing",
    "variance_type": "fixed_large",
}  # fmt: skip


def main():
    """Run one stage."""
    if sys.argv[1] == "reference":
        reference(sys.argv[2])
        return
    stage, settings, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    result = {"make": make, "load": load}[stage](settings, folder)
    np.savez(folder / f"{stage}.npz", **{name: value.numpy() for name, value in result.items()})


if __name__ == "__main__":
    main()
