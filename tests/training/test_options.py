"""The options of the trainer: each belongs to one class, and the config group has them all."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from ddpm.errors import ConfigError
from ddpm.training import Trainer
from ddpm.training.compatibility import FREE_KEYS
from ddpm.training.trainer import TrainerOptions

NODE = Path(__file__).parents[2] / "configs/trainer/default.yaml"


def test_every_option_is_declared_by_one_class():
    names = [name for group in TrainerOptions.__bases__ for name in group.__annotations__]
    assert len(names) == len(set(names))
    assert sorted(names) == sorted(each.name for each in fields(TrainerOptions))


def test_the_config_group_has_every_option():
    node = yaml.safe_load(NODE.read_text())
    assert node.pop("_target_") == "ddpm.training.Trainer"
    assert node.keys() == {each.name for each in fields(Trainer.Options)}


def test_a_group_of_options_stands_alone():
    for group in TrainerOptions.__bases__:
        assert group() == group()


def test_options_that_may_change_when_a_run_is_resumed():
    free = {key.removeprefix("trainer.") for key in FREE_KEYS if key.startswith("trainer.")}
    fixed = {each.name for each in fields(TrainerOptions)} - free
    assert fixed == {
        *("max_minutes", "batch_size", "batch_parts", "accumulate", "precision", "deterministic"),
        *("lr", "lr_warmup", "lr_decay", "weight_decay", "adam_betas", "clip_grad_norm"),
        *("ema_decay", "ema_warmup", "ema_window", "channels_last", "compile"),
    }


def test_the_defaults_of_earlier_versions():
    assert Trainer.legacy_defaults == {
        "batch_size": 128,
        "batch_parts": 1,
        "lr": 2e-4,
        "lr_warmup": 1000,
        "ema_window": None,
        "preview_every": 5000,
        "checkpoint_minutes": None,
        "precision": "no",
        "channels_last": False,
    }


def test_values_are_checked_in_every_group():
    with pytest.raises(ConfigError, match="keep_last=1: must be at least 2"):
        TrainerOptions(keep_last=1)
    with pytest.raises(ConfigError, match="unknown tracker"):
        TrainerOptions(trackers=("tensorbord",))
