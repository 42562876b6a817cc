"""Comparability of losses, determined from the configs."""

import copy

import pytest

from ddpm import comparable
from ddpm.comparable import differing, groups, warning

BASE = {
    "seed": 0,
    "data": {"_target_": "ddpm.data.Digits", "image_size": None, "class_cond": False, "val_fraction": 0.0},
    "model": {"_target_": "ddpm.models.UNet", "dim": 8},
    "schedule": {"_target_": "ddpm.diffusion.cosine", "num_steps": 1000, "offset": 0.008},
    "objective": {"_target_": "ddpm.diffusion.PredV", "loss": "l2", "weighting": "uniform"},
    "diffusion": {
        "_target_": "ddpm.diffusion.GaussianDiffusion", "variance": "fixed_small", "loss": "simple",
        "vlb_weight": 0.001, "bin_width": 0.0078, "offset_noise": 0.0, "self_condition": False,
        "label_dropout": 0.0,
    },
    "trainer": {"_target_": "ddpm.training.Trainer", "lr": 1e-4},
}  # fmt: skip


def changed(**options):
    config = copy.deepcopy(BASE)
    for key, value in options.items():
        group, _, option = key.partition("__")
        if option:
            config[group]["_target_" if option == "target" else option] = value
        else:
            config[group] = value
    return config


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"timesteps": {"_target_": "ddpm.training.LossSecondMoment", "history_per_term": 10}}, {}),
        ({"timesteps": {"_target_": "ddpm.training.Stratified"}}, {}),
        (
            {"timesteps": {"_target_": "ddpm.training.LogitNormal", "mean": 0.0, "std": 1.0}},
            {"timesteps": ["uniform", "logit_normal"]},
        ),
        ({"objective__target": "ddpm.diffusion.PredNoise"}, {"objective": ["pred_v", "pred_noise"]}),
        ({"objective__loss": "l1"}, {"objective.loss": ["l2", "l1"]}),
        ({"objective__weighting": "noise"}, {"objective.weighting": ["uniform", "noise"]}),
        ({"schedule__target": "ddpm.diffusion.linear", "schedule__offset": 3}, {"schedule": ["cosine", "linear"]}),
        ({"schedule__num_steps": 100}, {"schedule.num_steps": [1000, 100]}),
        ({"diffusion__offset_noise": 0.1}, {"diffusion.offset_noise": [0.0, 0.1]}),
        ({"diffusion__loss": "vlb"}, {"diffusion.loss": ["simple", "vlb"]}),
        ({"data__image_size": 16}, {"data.image_size": [None, 16]}),
        ({"data__target": "ddpm.data.CIFAR10"}, {"data": ["digits", "cifar10"]}),
        # options without effect on the comparability
        ({"seed": 1, "model__dim": 16, "trainer__lr": 1e-3}, {}),
        ({"diffusion__variance": "fixed_large"}, {}),
        ({"diffusion__self_condition": True, "diffusion__label_dropout": 0.1}, {}),
        ({"data__class_cond": True, "data__val_fraction": 0.1}, {}),
        ({"data": None}, {}),
        ({"objective__min_snr_gamma": 5}, {}),  # not an option of the other run
    ],
)  # fmt: skip
def test_options_that_change_the_loss(options, expected):
    assert differing([BASE, BASE, changed(**options)]) == expected
    assert (warning([BASE, changed(**options)], "runs") is None) == (not expected)


def test_the_variance_counts_where_the_bound_is_part_of_the_loss():
    one = changed(diffusion__loss="vlb")
    other = changed(diffusion__loss="vlb", diffusion__variance="learned")
    assert differing([one, other]) == {"diffusion.variance": ["fixed_small", "learned"]}


def test_the_warning_names_the_option_and_what_to_compare():
    line = warning([BASE, changed(objective__target="ddpm.diffusion.PredNoise")], "jobs")
    assert line == (
        "Losses are not comparable: the jobs differ in objective (pred_v, pred_noise); compare fid "
        "or bpd (ddpm-evaluate runs=... metrics=[fid,bpd])."
    )
    line = warning([BASE, changed(data__image_size=16)], "runs")
    assert line == (
        "Losses are not comparable: the runs differ in data.image_size (null, 16); compare those on "
        "the same data."
    )


def test_groups_of_comparable_losses():
    noise = changed(objective__target="ddpm.diffusion.PredNoise")
    short = changed(schedule__num_steps=10)
    assert groups([BASE, noise, BASE, short, noise]) == [1, 2, 1, 3, 2]
    assert groups([]) == [] and groups([{}, {}]) == [1, 1]


def test_the_lists_contain_existing_options():
    import yaml

    from ddpm.config.location import config_dir

    options = {
        f"{group}.{option}"
        for group in comparable.GROUPS
        for file in (config_dir() / group).glob("*.yaml")
        for option in yaml.safe_load(file.read_text())
    }
    assert {*comparable.FREE, *comparable.BOUND} <= options
