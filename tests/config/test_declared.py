"""Types of options that are read from the source, beside those of the imported classes."""

import inspect
import re
import sys

import pytest

from ddpm.config.declared import check_types, option_types
from ddpm.config.location import config_dir
from ddpm.config.registry import exported, options_of
from ddpm.config.schema import hints_of
from ddpm.errors import ConfigError

UNCLEAR = {"condition"}  # a group of options in itself


def test_the_types_are_those_of_the_classes():
    unclear = set()
    for file in config_dir().glob("*/*.yaml"):
        target = re.search(r"^_target_: (\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        if target is None or target[1] == "???":
            continue
        schema = options_of(exported(target[1], f"{file.parent.name}._target_"))
        parameters = inspect.signature(schema).parameters.values()
        types, hints = option_types(target[1]), hints_of(schema)
        assert {name: hints[name] for name in types} == types, target[1]
        unclear |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - set(types)
    assert unclear == UNCLEAR


@pytest.mark.parametrize("target", ["mine.Own", "ddpm.samplers.Nothing", "ddpm.missing.Own"])
def test_other_classes_are_left_to_the_factory(target):
    assert option_types(target) == {}
    check_types({"sampler": {"_target_": target, "steps": "x"}}, {"sampler.steps"}, {})


def test_only_typed_options_are_checked_and_named_as_typed():
    node = {"_target_": "ddpm.samplers.DDIM", "eta": "x", "own": "y"}
    options = {"sampler": node, "data": {"_target_": "ddpm.data.Digits", "val_fraction": "z"}}
    check_types(options, {"sampler.own", "seed"}, {})
    check_types({**options, "resume": "run"}, {"sampler.eta"}, {})
    with pytest.raises(ConfigError, match=r"^sampler\.eta=x: must be a number$"):
        check_types(options, {"sampler.eta"}, {})
    with pytest.raises(ConfigError, match=r"^noise=x: must be a number$"):
        check_types(options, set(), {"sampler.eta": "noise"})
    with pytest.raises(ConfigError, match=r"^data\.val_fraction=z: must be a number$"):
        check_types(options, {"data.val_fraction"}, {})


def test_a_package_whose_source_is_missing_is_left_to_the_factory(monkeypatch, tmp_path):
    declared = sys.modules["ddpm.config.declared"]
    for function in (option_types, declared._definition, declared._definitions):
        monkeypatch.setattr(declared, function.__name__, function.__wrapped__)
    monkeypatch.setattr(declared, "_ROOT", tmp_path)
    check_types({"sampler": {"_target_": "ddpm.samplers.DDIM", "eta": "x"}}, {"sampler.eta"}, {})
