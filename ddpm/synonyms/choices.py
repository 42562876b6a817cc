"""Names of choices and values that users of other tools type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """Names of other tools, and the options to use instead; see :mod:`ddpm.synonyms`.

    A translation in ``values`` that contains ``=`` replaces the options.
    """

    names: str
    use: str
    why: str = ""
    values: Mapping[str, str] = {}


CARD = "CUDA_VISIBLE_DEVICES chooses the card"
PRECISION = {
    **dict.fromkeys(("true", "16", "16-mixed", "float16", "half", "mixed"), "fp16"),
    **dict.fromkeys(("bf16-mixed", "bfloat16", "bf16-true"), "bf16"),
    **dict.fromkeys(("false", "32", "32-true", "fp32", "float32", "full", "tf32"), "no"),
}
DEVICE = {
    **dict.fromkeys(("gpu", "nvidia", "true"), "cuda"),
    **dict.fromkeys(("mps", "tpu", "xpu", "false"), "cpu"),
}
BF16 = {"true": "bf16", "false": "no"}
DDIM = {"true": "ddim", "false": "ddpm"}
ALL = {"-1": "auto", "all": "auto", "true": "auto", "ddp": "auto", "cuda": "auto"}
FOLDER = "data=folder data.path=..."
ARRAY = "data=sequence data.path=... model=unet1d"
VIDEO = "data=video data.path=... model=unet3d"
_IDDPM = "model=iddpm_unet"
_FAST, _FULL, _SOLVER = "sampler=ddim", "sampler=ddpm", "sampler=dpmpp"
_NO_TRANSFORMER = "transformers are not among the networks"
_NO_SOLVER = "a fast sampler"
CHOICES: Mapping[str, Sequence[Row]] = {
    "data": (
        Row("cifar10 cifar_10 cifar10_32", "data=cifar"),
        Row("fashion_mnist fashionmnist cifar100 celeba celeba_hq celebahq celeba64 ffhq "
            "imagenet imagenet64 lsun flowers flowers102 butterflies svhn afhq stl10 custom "
            "images image imagefolder image_folder own png jpg", FOLDER,
            "data=folder reads pictures"),
        Row("sequences npy npz numpy array signal signals audio timeseries time_series ecg 1d",
            ARRAY, "data=sequence reads arrays"),
        Row("videos gif gifs ucf101 kinetics moving_mnist", VIDEO, "data=video reads videos"),
    ),
    "model": (
        Row("dit uvit u_vit transformer vit sit mdt", _IDDPM, _NO_TRANSFORMER),
        Row("adm iddpm openai improved_diffusion guided_diffusion unetmodel ddpm ddpmpp ncsnpp "
            "edm song_unet dhariwal improved guided adm_unet", _IDDPM),
        Row("unet2d u_net unet2dmodel unet2d_model lucidrains denoising_diffusion_pytorch default "
            "unet_2d", "model=unet"),
        Row("unet1dmodel unet_1d unet_1d_model", "model=unet1d"),
        Row("unet_3d video_unet unet3dmodel video", "model=unet3d"),
        Row("simple small tiny toy simpleunet", "model=simple_unet"),
    ),
    "sampler": (
        Row("dpm++ dpm dpm_solver dpm_solver++ dpmsolver dpmsolver++ dpmpp_2m dpm++_2m dpm_multi "
            "dpmsolvermultistep", "sampler=dpmpp"),
        Row("dpmpp_2m_sde dpm++_2m_sde dpmpp_sde dpm++_sde", "sampler=dpmpp sampler.sde=true"),
        Row("dpm++_2m_karras dpmpp_2m_karras", "sampler=dpmpp sampler.spacing=karras"),
        Row("uni_pc unipcmultistep", "sampler=unipc"),
        Row("deismultistep", "sampler=deis"),
        Row("lms plms pndm", "sampler=ipndm"),
        Row("edm karras heun2 heundiscrete", "sampler=heun"),
        Row("ode euler flow_euler k_euler", _FAST, "Euler's method is DDIM"),
        Row("rk45 consistency lcm", _SOLVER, _NO_SOLVER),
        Row("ancestral euler_a euler_ancestral p_sample sde k_euler_a default ddpm_sampler",
            _FULL),
    ),
    "schedule": (
        Row("linear_beta_schedule linear_schedule vp", "schedule=linear"),
        Row("scaled_linear quad quadratic", "schedule=linear",
            "with other betas: those of scaled_linear come with ddpm-import source=diffusers"),
        Row("squaredcos_cap_v2 cos squaredcos cosine_beta_schedule cosine_schedule",
            "schedule=cosine"),
        Row("laplace", "schedule=cosine",
            "that of laplace comes with ddpm-import source=diffusers"),
        Row("karras exponential ve", "schedule=edm"),
        Row("sigmoid_beta_schedule", "schedule=sigmoid"),
        Row("flow rectified_flow flow_matching flowmatch flow_match_euler", "schedule=rectified"),
    ),
    "objective": (
        Row("eps epsilon noise pred_eps pred_epsilon predict_noise predict_epsilon ddpm",
            "objective=pred_noise"),
        Row("v v_prediction velocity v_pred predict_v", "objective=pred_v"),
        Row("flow rectified rectified_flow flow_matching flow_prediction flow_velocity",
            "objective=pred_flow"),
        Row("karras preconditioning edm_precond", "objective=edm"),
        Row("x0 xstart x_start start_x sample pred_xstart predict_xstart x0_prediction pred_start",
            "objective=pred_x0"),
        Row("l1 l2 mse mae huber", "objective.loss={}", "", {"mse": "l2", "mae": "l1"}),
    ),
    "diffusion": (
        Row("gaussian gaussiandiffusion gaussian_diffusion simple default", "diffusion=ddpm"),
        Row("improved improved_diffusion learned_sigma hybrid guided_diffusion", "diffusion=iddpm"),
        Row("vlb kl rescaled_kl", "diffusion=iddpm_vlb"),
    ),
    "timesteps": (
        Row("importance importance_sampling second_moment loss_second_moment_resampler loss",
            "timesteps=loss_second_moment"),
        Row("random", "timesteps=uniform"),
        Row("logitnormal logit sd3", "timesteps=logit_normal"),
        Row("lognormal edm", "timesteps=log_normal"),
        Row("low_discrepancy antithetic", "timesteps=stratified"),
    ),
    "extractor": (
        Row("inceptionv3 inception_v3 fid inception_v3_compat", "extractor=inception"),
        Row("dino dinov2_vit_l_14", "extractor=dinov2"),
    ),
}  # fmt: skip
VALUES: Mapping[str, Mapping[str, str]] = {
    "device": DEVICE,
    "precision": PRECISION,
    "lr_decay": {"linear": "cosine", "none": "constant", "cos": "cosine"},
    "loss": {"mse": "l2", "mae": "l1", "smooth_l1": "huber", "kl": "vlb"},
    "weights": {"averaged": "ema", "model": "raw", "online": "raw"},
    "spacing": {"leading": "uniform", "linspace": "uniform", "quad": "quadratic"},
}
"""Values of options, by the last part of the option."""
