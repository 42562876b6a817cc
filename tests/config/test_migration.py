"""Stored configs of earlier versions."""

from ddpm.config.migration import migrate


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
