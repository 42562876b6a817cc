"""Stored configs of earlier versions."""

import pytest

from ddpm import training
from ddpm.config.migration import migrate
from ddpm.config.registry import build


def test_renamed_packages_are_replaced_at_any_depth():
    old = {
        "seed": 0,
        "evaluation": {
            "extractor": {"_target_": "ddpm.fidelity.Pixels"},
            "sampler": {"_target_": "ddpm.samplers.DDIM", "steps": 10},
        },
        "list": [{"_target_": "ddpm.fidelity.Auto"}],
    }
    new = migrate(old)
    assert new["evaluation"]["extractor"] == {"_target_": "ddpm.metrics.Pixels"}
    assert new["evaluation"]["sampler"] == old["evaluation"]["sampler"]
    assert new["list"] == [{"_target_": "ddpm.metrics.Auto"}]
    assert migrate(new) == new
    assert old["evaluation"]["extractor"]["_target_"] == "ddpm.fidelity.Pixels"


def test_names_with_a_common_prefix_are_not_changed():
    node = {"_target_": "ddpm.fidelity_of_mine.Pixels"}
    assert migrate(node) == node


@pytest.mark.parametrize(
    "name", ["LogNormal", "LogitNormal", "LossSecondMoment", "Stratified", "Uniform"]
)
def test_timesteps_of_earlier_versions_are_built(name):
    """They were in ``ddpm.diffusion``, and are in ``ddpm.training``."""
    schedule = {"_target_": "ddpm.diffusion.cosine", "num_steps": 10}
    config = migrate({"timesteps": {"_target_": f"ddpm.diffusion.{name}"}, "schedule": schedule})
    assert config["schedule"] == schedule and migrate(config) == config
    built = build(config["timesteps"], "timesteps", build(config["schedule"], "schedule"))
    assert type(built) is getattr(training, name)
