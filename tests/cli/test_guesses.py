"""Suggestions for options, choices and values of other tools."""

import functools
import importlib
import os
import re
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from ddpm import synonyms
from ddpm.checkpoint_paths import nearest_run
from ddpm.cli import argument_errors
from ddpm.config.location import config_dir
from ddpm.config.registry import build, exported, options_of
from ddpm.config.schema import check, hints_of, typed
from ddpm.errors import ConfigError
from ddpm.interop.export import export_model

EPOCHS = (
    "trainer.max_steps=... (optimizer steps: epochs times samples, divided by trainer.batch_size)"
)
SCALED = (
    "schedule=linear (with other betas: those of scaled_linear come with ddpm-import "
    "source=diffusers)"
)
TRAIN = [
    # (typed, suggestion)
    ("epochs=10", EPOCHS),
    ("trainer.epochs=10", EPOCHS),
    ("trainer.max_epochs=10", EPOCHS),
    ("num_train_epochs=3", EPOCHS),
    ("steps=10", "trainer.max_steps=10"),
    ("train_num_steps=700000", "trainer.max_steps=700000"),
    ("max_train_steps=1000", "trainer.max_steps=1000"),
    ("trainer.fast_dev_run=true", "trainer.max_steps=2"),
    ("lr_scheduler_type=cosine_with_restarts", "trainer.lr_decay=cosine"),
    ("sigma_small=true", "diffusion.variance=fixed_small"),
    ("instance_data_dir=imgs", "data=folder data.path=imgs"),
    ("callbacks=early_stopping", "trainer.best=loss"),
    ("training.max_iters=1000", "trainer.max_steps=1000"),
    ("lr_anneal_steps=1000", "trainer.max_steps=1000 trainer.lr_decay=cosine"),
    ("max_time=00:20", "trainer.max_minutes=..."),
    ("batch_size=4", "trainer.batch_size=4"),
    ("bs=4", "trainer.batch_size=4"),
    ("data.batch_size=4", "trainer.batch_size=4"),
    ("per_device_train_batch_size=4", "trainer.batch_size=4"),
    ("microbatch=4", "trainer.accumulate=..."),
    ("lr_anneal_steps=0", "trainer.max_steps=..."),
    ("trainer.gradient_accumulation_steps=2", "trainer.accumulate=2"),
    ("gradient_accumulate_every=2", "trainer.accumulate=2"),
    ("lr=1e-4", "trainer.lr=1e-4"),
    ("learning_rate=1e-4", "trainer.lr=1e-4"),
    ("trainer.learning_rate=1e-4", "trainer.lr=1e-4"),
    ("optimizer.lr=1e-4", "trainer.lr=1e-4"),
    ("train_lr=1e-4", "trainer.lr=1e-4"),
    ("lr_warmup_steps=500", "trainer.lr_warmup=500"),
    ("lr_scheduler=linear", "trainer.lr_decay=cosine"),
    ("max_grad_norm=1", "trainer.clip_grad_norm=1"),
    ("gradient_clip_val=0.5", "trainer.clip_grad_norm=0.5"),
    ("ema_rate=0.999", "trainer.ema_decay=0.999"),
    ("ema_halflife=500", "trainer.ema_decay=..."),
    ("ema_power=0.75", "trainer.ema_warmup=true"),
    ("ema_update_every=10", "trainer.ema_decay=..."),
    ("use_ema=true", "trainer.ema_decay=0.9999"),
    ("trainer.ema=true", "trainer.ema_decay=0.9999"),
    ("use_ema=false", "trainer.ema_decay=0"),
    ("phema=true", "trainer.posthoc_ema=[0.05,0.1]"),
    ("trainer.sigma_rels=[0.05,0.1]", "trainer.posthoc_ema=[0.05,0.1]"),
    ("amp=true", "trainer.precision=fp16"),
    ("trainer.amp=true", "trainer.precision=fp16"),
    ("fp16=true", "trainer.precision=fp16"),
    ("use_fp16=false", "trainer.precision=no"),
    ("bf16=true", "trainer.precision=bf16"),
    ("precision=bf16", "trainer.precision=bf16"),
    ("precision=16-mixed", "trainer.precision=fp16"),
    ("mixed_precision=fp16", "trainer.precision=fp16"),
    ("gpus=2", "launch.processes=2"),
    ("devices=-1", "launch.processes=auto"),
    ("num_processes=2", "launch.processes=2"),
    ("gpu=0", "device=cuda"),
    ("cpu=true", "device=cpu"),
    ("accelerator=gpu", "device=cuda"),
    ("num_workers=4", "trainer.num_workers=4"),
    ("data.num_workers=4", "trainer.num_workers=4"),
    ("dataloader_num_workers=4", "trainer.num_workers=4"),
    ("gradient_checkpointing=true", "model=iddpm_unet model.use_checkpoint=true"),
    ("random_seed=3", "seed=3"),
    ("trainer.seed=3", "seed=3"),
    ("log_interval=10", "trainer.log_every=10"),
    ("logging_steps=10", "trainer.log_every=10"),
    ("save_every=100", "trainer.checkpoint_every=100"),
    ("save_interval=100", "trainer.checkpoint_every=100"),
    ("checkpointing_steps=100", "trainer.checkpoint_every=100"),
    ("save_and_sample_every=100", "trainer.checkpoint_every=100 trainer.preview_every=100"),
    ("eval_every=100", "trainer.evaluate_every=100"),
    ("save_top_k=2", "trainer.keep_last=2"),
    ("calculate_fid=true", "trainer.evaluate_every=5000 evaluation.metrics=[fid]"),
    ("num_fid_samples=50000", "evaluation.num_samples=50000"),
    ("save_best_and_latest_only=true", "trainer.evaluate_every=5000 trainer.best=fid"),
    ("wandb=true", "trainer.trackers=[wandb]"),
    ("report_to=tensorboard", "trainer.trackers=[tensorboard]"),
    ("dataset=cifar10", "data=cifar"),
    ("dataset=digits", "data=digits"),
    ("dataset=./pictures", "data=folder data.path=./pictures"),
    ("data.dir=pictures", "data=folder data.path=pictures"),
    ("data.path=pictures", "data=folder data.path=pictures"),
    ("data.path=waves.npy", "model=unet1d data=sequence data.path=waves.npy"),
    ("data_dir=pictures", "data=folder data.path=pictures"),
    ("data=folder data.dir=pictures", "data.path=pictures"),
    ("image_size=64", "data.image_size=64"),
    ("center_crop=true", "data.image_size=..."),
    ("convert_image_to=L", "data=folder data.path=... data.color=grey"),
    ("data=folder convert_image_to=RGB", "data.color=rgb"),
    ("preserve_input_precision=true", "data=folder data.path=... data.bits=16"),
    ("resolution=64", "data.image_size=64"),
    ("data.resolution=64", "data.image_size=64"),
    ("data=folder random_flip=true", "data.flip=true"),
    ("random_flip=true", "data=folder data.path=... data.flip=true"),
    ("data.flip=true", "data=cifar data.flip=true (an option of cifar, folder, video)"),
    ("class_cond=true", "data.class_cond=true"),
    ("num_classes=10", "data.class_cond=true"),
    ("val_split=0.1", "data.val_fraction=0.1"),
    ("model.num_layers=4", "model.dim_mults=[1,2,4]"),
    ("model=iddpm_unet model.num_layers=4", "model.channel_mult=[1,2,4]"),
    ("channel_mult=[1,2]", "model.dim_mults=[1,2]"),
    ("model=iddpm_unet channel_mults=1,2", "model.channel_mult=[1,2]"),
    ("attention_resolutions=2,4", "model=iddpm_unet model.attention_resolutions=[2,4]"),
    ("num_heads_upsample=-1", "model=iddpm_unet model.num_heads_upsample=null"),
    ("num_head_channels=64", "model=iddpm_unet model.num_head_channels=64"),
    ("num_channels=64", "model.dim=64"),
    ("model=iddpm_unet num_channels=64", "model.model_channels=64"),
    ("model=simple_unet model.hidden_size=64", "model.width=64"),
    ("model.num_res_blocks=2", "model=iddpm_unet model.num_res_blocks=2"),
    ("num_heads=4", "model.attn_heads=4"),
    ("arch=unet", "model=unet"),
    ("num_timesteps=100", "schedule.num_steps=100"),
    ("diffusion.timesteps=100", "schedule.num_steps=100"),
    ("diffusion_steps=100", "schedule.num_steps=100"),
    ("noise_schedule=cosine", "schedule=cosine"),
    ("beta_schedule=squaredcos_cap_v2", "schedule=cosine"),
    ("beta_schedule=scaled_linear", SCALED),
    ("ddpm_beta_schedule=linear", "schedule=linear"),
    ("ddpm_num_steps=100", "schedule.num_steps=100"),
    ("schedule_fn_kwargs=a", "schedule=sigmoid schedule.start=..."),
    ("schedule.beta_start=1e-4", "schedule=linear schedule.beta_start=1e-4"),
    ("prediction_type=v_prediction", "objective=pred_v"),
    ("prediction_type=epsilon", "objective=pred_noise"),
    ("predict_xstart=true", "objective=pred_x0"),
    ("loss_type=mse", "objective.loss=l2"),
    ("loss_type=rescaled_mse", "objective.loss=l2"),
    ("loss_type=rescaled_kl", "diffusion=iddpm_vlb"),
    ("use_kl=true", "diffusion=iddpm_vlb"),
    ("rescale_learned_sigmas=true", "diffusion=iddpm"),
    ("rescale_learned_sigmas=false", "diffusion=iddpm diffusion.vlb_weight=..."),
    ("p2_loss_weight_gamma=0.5", "objective.min_snr_gamma=5"),
    ("snr_gamma=5", "objective.min_snr_gamma=5"),
    ("learn_sigma=true", "diffusion=iddpm"),
    ("schedule_sampler=loss-second-moment", "timesteps=loss_second_moment"),
    ("cond_drop_prob=0.1", "data.class_cond=true diffusion.label_dropout=0.1"),
    ("num_inference_steps=50", "sampler.steps=50"),
    ("sampling_timesteps=250", "sampler.steps=250"),
    ("timestep_respacing=ddim50", "sampler.steps=ddim50"),
    ("use_ddim=true", "sampler=ddim"),
    ("ddim_sampling_eta=0", "sampler=ddim sampler.eta=0"),
    ("n=4", "trainer.preview_samples=4"),
    ("num_samples=16", "trainer.preview_samples=16"),
    ("cfg_scale=3", "data.class_cond=true diffusion.label_dropout=0.1"),
    ("guidance_scale=3", "data.class_cond=true diffusion.label_dropout=0.1"),
    ("checkpoint=outputs/a", "resume=outputs/a"),
    ("resume_checkpoint=outputs/a", "resume=outputs/a"),
    ("model_path=outputs/a", "resume=outputs/a"),
    ("resume_from_checkpoint=latest", "resume=outputs/latest"),
    ("results_folder=made", "out=made"),
    ("output_dir=made", "out=made"),
    ("run_name=a", "name=a"),
    ("format=png", "ddpm-sample format=png"),
    ("num_epoch=10", EPOCHS),
    ("sampler.guidance_scale=3", "data.class_cond=true diffusion.label_dropout=0.1"),
    ("noise_offset=0.1", "diffusion.offset_noise=0.1"),
    ("offset_noise_strength=0.1", "diffusion.offset_noise=0.1"),
    ("rescale_betas_zero_snr=true", "schedule.zero_terminal_snr=true"),
    ("num_frames=8", "data=video data.frames=8"),
    ("split=test", "data=cifar data.split=test"),
    ("early_stopping=true", "trainer.best=loss"),
]  # fmt: skip
OTHERS = [
    ("sample", "n=4", "num_samples=4"),
    ("sample", "num_images=4", "num_samples=4"),
    ("sample", "num_inference_steps=50", "steps=50"),
    ("sample", "ddim_steps=50", "steps=50"),
    ("sample", "timestep_respacing=ddim50", "steps=ddim50"),
    ("sample", "timesteps=50", "steps=50"),
    ("sample", "cfg_scale=3", "guidance=3"),
    ("sample", "guidance_scale=3", "guidance=3"),
    ("sample", "use_ddim=false", "sampler=ddpm"),
    ("sample", "scheduler=euler", "sampler=ddim"),
    ("sample", "eta=0.5", "sampler=ddim sampler.eta=0.5"),
    ("sample", "sampler.eta=0.5", "sampler=ddim sampler.eta=0.5"),
    ("sample", "sigma_small=true", "sampler=ddpm sampler.variance=fixed_small"),
    ("sample", "classifier_path=a.pt", "guide=..."),
    ("sample", "class=3", "classes=[3]"),
    ("sample", "labels=[3,7]", "classes=[3,7]"),
    ("sample", "checkpoint=outputs/a", "ckpt=outputs/a"),
    ("sample", "model_path=outputs/a", "ckpt=outputs/a"),
    ("sample", "model=outputs/a", "ckpt=outputs/a"),
    ("sample", "resume=outputs/a", "ckpt=outputs/a"),
    ("sample", "use_ema=false", "weights=raw"),
    ("sample", "fp16=true", "precision=fp16"),
    ("sample", "results_folder=made", "out=made"),
    ("sample", "lr=1e-4", "ddpm-train trainer.lr=1e-4"),
    ("interpolate", "n=5", "num_frames=5"),
    ("interpolate", "image1=a.png", "a=a.png"),
    ("interpolate", "strength=500", "t=500"),
    ("evaluate", "dataset=cifar", "reference=cifar"),
    ("evaluate", "images=made", "samples=made"),
    ("evaluate", "metric=kid", "metrics=[kid]"),
    ("evaluate", "kid=true", "metrics=[kid]"),
    ("sample", "cond=a.npy", "condition=a.npy"),
    ("sample", "experiment=mnist", "ddpm-train experiment=mnist"),
    ("average", "checkpoint=outputs/a", "ckpt=outputs/a"),
    ("average", "sigma=0.1", "sigma_rel=0.1"),
    ("average", "at_step=5000", "step=5000"),
    ("import", "checkpoint=a.pt", "file=a.pt"),
    ("export", "checkpoint=outputs/a", "ckpt=outputs/a"),
]
CHOICES = [
    ("model=dit", "model=iddpm_unet (transformers are not among the networks)"),
    ("model=adm", "model=iddpm_unet"),
    ("data=cifar10", "data=cifar"),
    ("data=CIFAR-10", "data=cifar"),
    ("data=svhn", "data=folder data.path=... (data=folder reads pictures)"),
    ("data=./pictures", "data=folder data.path=./pictures"),
    ("data=/home/me/pictures", "data=folder data.path=/home/me/pictures"),
    ("data=waves.npy", "model=unet1d data=sequence data.path=waves.npy"),
    ("data=videos", "data=video data.path=... model=unet3d (data=video reads videos)"),
    ("sampler=dpm++", "sampler=dpmpp"),
    ("sampler=rk45", "sampler=dpmpp (a fast sampler)"),
    ("sampler=euler", "sampler=ddim (Euler's method is DDIM)"),
    ("sampler=euler_a", "sampler=ddpm"),
    ("sampler@evaluation.sampler=plms", "sampler@evaluation.sampler=ipndm"),
    ("schedule=scaled_linear", SCALED),
    ("schedule=karras", "schedule=edm"),
    ("schedule=vp", "schedule=linear"),
    ("objective=eps", "objective=pred_noise"),
    ("objective=v_prediction", "objective=pred_v"),
    ("diffusion=gaussian", "diffusion=ddpm"),
    ("timesteps=importance", "timesteps=loss_second_moment"),
]
VALUES = [
    ("device=gpu", "device=cuda"),
    ("device=cuda:0", "device=cuda (CUDA_VISIBLE_DEVICES chooses the card)"),
    ("device=mps", "device=cpu"),
    ("trainer.precision=16", "trainer.precision=fp16"),
    ("trainer.precision=bf16-mixed", "trainer.precision=bf16"),
    ("trainer.lr_decay=linear", "trainer.lr_decay=cosine"),
    ("objective.loss=mse", "objective.loss=l2"),
]
FLAGS = [
    ("train", "--lr 1e-4", "--lr 1e-4", "trainer.lr=1e-4"),
    ("train", "--batch_size=4", "--batch_size=4", "trainer.batch_size=4"),
    ("train", "-n 4", "-n 4", "trainer.preview_samples=4 (of the previews; ddpm-sample has num_samples=)"),
    ("train", "--seed 3", "--seed 3", "seed=3"),
    ("train", "--dataset cifar10", "--dataset cifar10", "data=cifar"),
    ("train", "--use-fp16", "--use-fp16", "trainer.precision=fp16 (fp16 needs a GPU, bf16 does not)"),
    ("train", "--gpus -1", "--gpus -1", "launch.processes=auto"),
    ("sample", "seed=1 --num-samples 4", "--num-samples 4", "num_samples=4"),
    ("sample", "--ckpt outputs/a", "--ckpt outputs/a", "ckpt=outputs/a"),
    ("sample", "outputs/a", "outputs/a", "ckpt=outputs/a"),
    ("train", "cifar", "cifar", "data=cifar"),
]  # fmt: skip
COMMANDS = {
    "train": ("train", "train"),
    "sample": ("sample", "Sample"),
    "interpolate": ("interpolate", "Interpolate"),
    "evaluate": ("evaluate", "Evaluate"),
    "average": ("average", "average"),
    "import": ("importing", "import_run"),
    "export": ("exporting", "export"),
}


@functools.cache
def composed(command, choices):
    """Return the config for some choices as plain data."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        return OmegaConf.to_container(compose(command, overrides=list(choices)))


def paths(node, prefix=""):
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{key}.")


def check_suggestion(command, arguments, use):
    """Check that suggested options exist and accept their values."""
    words = use.partition(" (")[0].split()
    if words[0].startswith("ddpm-"):
        command, arguments = words.pop(0).removeprefix("ddpm-"), ()
    groups = argument_errors._groups(command)
    choices, options = [], []
    for word in words:
        key, _, value = word.partition("=")
        if key.partition("@")[0] in groups:
            assert (config_dir() / key.partition("@")[0] / f"{value}.yaml").is_file(), word
            choices.append(word)
        else:
            options.append((key, value))
    made = {each.partition("=")[0] for each in choices}
    before = [
        each
        for each in arguments
        if each.partition("=")[0] in groups and each.partition("=")[0] not in made
    ]
    config = composed(command, (*before, *choices))
    for key, value in options:
        key = {"steps": "sampler.steps"}.get(key, key)  # an alias
        read = None if value == "..." else yaml.safe_load(value)
        group, _, option = key.partition(".")
        if not option:
            module, name = COMMANDS[command]
            hints = get_type_hints(getattr(importlib.import_module(f"ddpm.cli.{module}"), name))
            typed("x" if read is None else read, hints[key], key)
        elif group == "launch":
            assert read == "auto" or isinstance(read, int)
        elif group == "evaluation":
            assert option in config[group]
        else:
            assert option in config[group], key
            node = {name: "x" if each == "???" else each for name, each in config[group].items()}
            target = exported(node.pop("_target_"), key)
            node.pop("val_fraction", None)
            if option != "val_fraction" and value != "..." and "..." not in value:
                check({**node, option: read}, options_of(target), group)


def explanation(command, typed, error):
    """Return the explanation of Hydra's error for the last option, without the option."""
    *_, last = typed
    line = str(argument_errors.explain(command, error, typed))
    assert line.startswith(f"{last}: ") and "\n" not in line
    return line.removeprefix(f"{last}: ")


@pytest.mark.parametrize(
    ("command", "options", "use"),
    [*(("train", *row) for row in TRAIN), *OTHERS],
    ids=lambda each: each.partition(" (")[0],
)
def test_unknown_options(command, options, use):
    typed = options.split()
    key = typed[-1].partition("=")[0]
    assert key not in argument_errors._options(command, typed), "it is an option"
    answer = explanation(
        command, typed, Exception(f"Could not override '{key}'.\nKey is not in struct")
    )
    before, _, advice = answer.partition("; use ")
    assert before == "unknown option"
    assert advice == use or advice.startswith(f"{use} ("), answer
    check_suggestion(command, typed, use)


@pytest.mark.parametrize(("options", "use"), CHOICES, ids=[options for options, _ in CHOICES])
def test_unknown_choices(options, use):
    group, _, name = options.partition("=")
    group = group.partition("@")[0]
    files = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
    listed = "".join(f"\n\t{file}" for file in files)
    message = f"In 'train': Could not find '{group}/{name}'\n\nAvailable options in '{group}':{listed}\nConfig search path:\n\tx"
    answer = explanation("train", [options], Exception(message))
    assert answer == f"unknown choice (there are: {', '.join(files)}); use {use}"
    check_suggestion("train", [], use)


@pytest.mark.parametrize(("option", "use"), VALUES, ids=[option for option, _ in VALUES])
def test_unknown_values(option, use):
    key, _, value = option.partition("=")
    group, _, name = key.rpartition(".")
    if group:
        target = exported(composed("train", ())[group]["_target_"], key)
        schema = options_of(target)
        hint = hints_of(schema)[name]
    else:
        hint = get_type_hints(importlib.import_module("ddpm.cli.train").train)[name]
    with pytest.raises(ConfigError) as raised:
        typed(yaml.safe_load(value), hint, key)
    assert str(raised.value) == f"{option}: unknown choice; use {use}"
    meant = yaml.safe_load(use.partition(" (")[0].partition("=")[2])
    assert typed(meant, hint, key) == meant


@pytest.mark.parametrize(("command", "arguments", "shown", "use"), FLAGS, ids=[f[1] for f in FLAGS])
def test_dashes_and_missing_equals_signs(command, arguments, shown, use):
    with pytest.raises(ConfigError) as raised:
        argument_errors.check_arguments(command, arguments.split())
    match = re.fullmatch(
        r"(.+?): options are written key=value(, without dashes)?; use (.+)", str(raised.value)
    )
    assert match is not None and (match[1], match[3]) == (shown, use)
    check_suggestion(command, [], use)


@pytest.mark.parametrize(
    "arguments",
    ["-m seed=1,2", "--multirun seed=1", "--cfg job", "-c job --resolve", "--info all", "-cd mine seed=1", "--config-dir=mine", "--config-name mine", "--hydra-help", "~trainer.lr", "seed=1", "-sc install=bash", "--experimental-rerun job.pickle"],
)  # fmt: skip
def test_flags_of_hydra_are_accepted(arguments):
    argument_errors.check_arguments("train", arguments.split())


def test_the_rerun_flag_cannot_be_abbreviated():
    with pytest.raises(ConfigError, match="use name=job"):
        argument_errors.check_arguments("train", ["--exp", "job"])


@pytest.mark.parametrize(
    ("command", "typed", "answer"),
    [
        ("train", "timesteps=1000", "must be one of its choices; use schedule.num_steps=1000 (T of the process)"),
        ("train", "model=3", "must be one of its choices; --help lists them"),
        ("sample", "timesteps=50", "unknown option; use steps=50 (network calls)"),
    ],
)  # fmt: skip
def test_numbers_in_place_of_choices(command, typed, answer):
    assert (
        explanation(command, [typed], ValueError(f"{argument_errors.NO_CHOICE}. Got int")) == answer
    )


@pytest.mark.parametrize(
    ("command", "typed", "answer"),
    [
        ("sample", "image_size=64", "unknown option; the size comes from the checkpoint; leave it out"),
        ("sample", "class_cond=true", "unknown option; it comes from the checkpoint; leave it out"),
        ("sample", "attention_resolutions=16,8", "unknown option; it comes from the checkpoint; leave it out"),
        ("sample", "classifier_depth=2", "unknown option; guide=module:function builds its own classifier; leave it out"),
        ("train", "model_config_name_or_path=a", "unknown option; model= chooses the network; ddpm-import source=diffusers reads one of diffusers"),
        ("train", "push_to_hub=true", "unknown option; ddpm-export push=hf://owner/name uploads a trained run"),
        ("sample", "model.dim=64", "the model comes from the checkpoint; leave it out"),
        ("train", "optimizer=adam", "unknown option; the optimizer is AdamW; its options are trainer.lr, trainer.adam_betas and trainer.weight_decay"),
        ("train", "verbose=1", "unknown option; it has no counterpart; leave it out"),
        ("train", "trainer.max_step=5", "unknown option; did you mean 'trainer.max_steps'?"),
        ("train", "sampler.spacin=5", "unknown option; did you mean 'sampler.spacing'?"),
    ],
)  # fmt: skip
def test_other_answers(command, typed, answer):
    key = typed.partition("=")[0]
    assert explanation(command, [typed], Exception(f"Could not override '{key}'.")) == answer


def test_names_are_unique_in_a_table():
    for rows in (synonyms.TRAIN, *synonyms.OTHERS.values(), *synonyms.CHOICES.values()):
        names = [name for row in rows for name in row.names.split()]
        if rows is synonyms.TRAIN or rows in synonyms.CHOICES.values():
            assert sorted(names) == sorted(set(names))
        assert all(name == name.lower() and "-" not in name for name in names)


@pytest.mark.parametrize(
    ("command", "rows"),
    [("train", synonyms.TRAIN), *synonyms.OTHERS.items()],
    ids=["train", *synonyms.OTHERS],
)
def test_rows_name_options_that_exist(command, rows):
    """Check the options of all rows, also of those without a test above."""
    for row in rows:
        replaced = [value for value in row.values.values() if "=" in value]
        for use in [*(row.use.split("|") if row.use else ()), *replaced]:
            words = use.split()
            groups = argument_errors._groups(command)
            choices = tuple(w for w in words if w.partition("=")[0] in groups and "{}" not in w)
            fitting = [choices] if choices else [(), ("model=iddpm_unet",), ("model=simple_unet",)]
            for word in words:
                key = word.partition("=")[0]
                made = fitting if key.startswith("model.") else fitting[:1]
                if key in ("data.flip", "data.color", "data.bits") and not choices:
                    made = [("data=folder",)]
                assert any(key in set(paths(composed(command, one))) for one in made), row


def test_unknown_options_of_a_stored_config_have_suggestions():
    node = {"_target_": "ddpm.samplers.DDIM", "num_inference_steps": 5}
    with pytest.raises(ConfigError) as raised:
        build(node, "sampler")
    assert str(raised.value).startswith(
        "sampler.num_inference_steps=5: unknown option; use sampler.steps=5"
    )


def test_the_nearest_run_of_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert nearest_run(Path("outputs/latest")) is None
    for age, place in ((30, "outputs/a"), (10, "outputs/b"), (20, "outputs/c"), (5, "elsewhere/d")):
        (Path(place) / "checkpoints/step-00000001").mkdir(parents=True)
        os.utime(place, (1e9 - age, 1e9 - age))
    Path("outputs/empty").mkdir()
    Path("outputs/latest").symlink_to("gone")
    assert nearest_run(Path("outputs/latest")) == Path("outputs/b")
    assert nearest_run(Path("b")) == Path("outputs/b")
    assert nearest_run(Path("elsewhere/b")) == Path("elsewhere/d")


def test_formats_are_listed_once():
    with pytest.raises(ConfigError) as raised:
        export_model("tflite", None, {}, "ema", diffusion=None, step=0, version=None)
    line = str(raised.value)
    assert line.startswith("format=tflite: is unknown (there are: ")
    assert line.count("there are") == line.count("safetensors") == line.count("diffphycon") == 1


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("train", "timesteps=1000", "timesteps=1000: must be one of its choices; use schedule.num_steps=1000 (T of the process)"),
        ("train", "+epochs=3", f"epochs=3: unknown option; use {EPOCHS}"),
        ("sample", "--steps 20", "--steps 20: options are written key=value, without dashes; use steps=20"),
        ("train", "data=/no/pictures", "data=/no/pictures: unknown choice (there are: cifar, digits, folder, mnist, sequence, video); use data=folder data.path=/no/pictures"),
    ],
)  # fmt: skip
def test_whole_commands(command, name, options, line):
    ended = command(name, *options.split())
    assert (ended.status, ended.line) == (1, f"ddpm-{name}: {line}")


def test_folders_as_arguments_are_data_or_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    for name, answer in (("pets", "data=folder data.path=pets"), ("old", "resume=old")):
        with pytest.raises(ConfigError, match=f"options are written key=value; use {answer}$"):
            argument_errors.check_arguments("train", [name])
    missing = Exception("In 'train': Could not find 'data/pets'")
    assert explanation("train", ["data=pets"], missing).endswith("; use data=folder data.path=pets")
