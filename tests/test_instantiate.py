"""Objects from configs: types, exported names and rejected targets."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from omegaconf import OmegaConf

from ddpm import instantiate
from ddpm.config.registry import build, config_with_defaults, load_plugins, with_defaults
from ddpm.config.schema import check, typed
from ddpm.config.text import from_yaml, plain, to_yaml
from ddpm.data.spec import DataSpec
from ddpm.diffusion import GaussianDiffusion, PredV, cosine
from ddpm.errors import ConfigError
from ddpm.training.compatibility import check_compatible

Choice = Literal["no", "fp16", "yes"]
GOOD = [
    (int, 3, 3),
    (int, 1e5, 100_000),
    (int, "7", 7),
    (int | None, None, None),
    (float, 1, 1.0),
    (float, "1e-4", 1e-4),
    (float | None, None, None),
    (bool, True, True),
    (bool, False, False),
    (str, "a", "a"),
    (str, 12, "12"),
    (str | None, None, None),
    (Choice, "fp16", "fp16"),
    (Choice, False, "no"),  # unquoted no in YAML
    (Choice, True, "yes"),
    (Choice | None, None, None),
    (Literal["none", "static"], False, "none"),
    (tuple[int, ...], [1, 2, 4], (1, 2, 4)),
    (tuple[float, float], [0, 1], (0.0, 1.0)),
    (list[str], ["a", "b"], ["a", "b"]),
    (bool | tuple[bool, ...] | None, True, True),
    (bool | tuple[bool, ...] | None, [True, False], (True, False)),
    (int | tuple[int, int] | None, [8, 12], (8, 12)),
    (int | str, 3, 3),
    (int | str, "3", "3"),
    (list[int | str] | int | str | None, [3, "cat"], [3, "cat"]),
    (dict[str, Any], {"a": 1}, {"a": 1}),
]
BAD = [
    (int, True, "k=true: must be a whole number"),
    (int, 1.5, "k=1.5: must be a whole number"),
    (int, "many", "k=many: must be a whole number"),
    (int, None, "k=null: must be a whole number"),
    (int | None, "x", "k=x: must be a whole number or null"),
    (float, False, "k=false: must be a number"),
    (float, [1], "k=[1]: must be a number"),
    (bool, 3, "k=3: must be true or false"),
    (str, ["a"], "k=[a]: must be text"),
    (str, True, "k=true: must be text"),
    (
        Choice,
        "fp15",
        "k=fp15: unknown choice; did you mean 'fp16'? (there are: no, fp16, yes)",
    ),
    (Choice, "zzzz", "k=zzzz: unknown choice (there are: fp16, no, yes)"),
    (Choice, 3, "k=3: must be one of no, fp16, yes"),
    (Literal["a", "b"], True, "k=true: must be one of a, b"),
    (tuple[float, float], [0.9], "k=[0.9]: must be 2 entries, each a number, like [1,2]"),
    (tuple[int, ...], 4, "k=4: must be a list, each a whole number, like [1,2]"),
    (tuple[int, ...], [1, "b"], "k=[1,b]: must be a list, each a whole number, like [1,2]"),
    (list[str], "a", "k=a: must be a list, each text, like [a,b]"),
    (dict[str, Any], 3, "k=3: must be a group of options"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value", "expected"), GOOD, ids=str)
def test_valid_values(annotation, value, expected):
    result = typed(value, annotation, "k")
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(("annotation", "value", "line"), BAD, ids=str)
def test_invalid_values(annotation, value, line):
    with pytest.raises(ConfigError) as caught:
        typed(value, annotation, "k")
    assert str(caught.value) == line


@dataclass(frozen=True, kw_only=True)
class Group:
    """Group of options, one of them required."""

    size: int
    names: tuple[str, ...] = ()


def test_a_group_of_options_becomes_a_dataclass():
    assert typed({"size": 1e1, "names": ["a", 2]}, Group, "k") == Group(size=10, names=("a", "2"))
    assert typed({"size": 3}, Group, "k") == Group(size=3)
    assert typed(Group(size=3), Group, "k") == Group(size=3)
    for value, line in [
        ({}, "k.size: is missing; add k.size=..."),
        ({"size": True}, "k.size=true: must be a whole number"),
        ({"size": 1, "names": 2}, "k.names=2: must be a list, each text, like [a,b]"),
        ({"size": 1, "name": 2}, "k.name=2: unknown option; did you mean 'k.names'?"),
        ([1], "k=[1]: must be a group of options"),
        (None, "k=null: must be a group of options"),
    ]:
        assert error_of(typed, value, Group, "k") == line


def target(runtime: int, *, size: int, rate: float = 0.5, mode: Literal["a", "b"] = "a") -> None:
    """Function with one positional argument and three options."""


def error_of(function, *arguments):
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    return str(caught.value)


def test_check():
    assert check({"size": 1e1, "rate": 2}, target) == {"size": 10, "rate": 2.0}
    assert type(check({"size": 1e1}, target)["size"]) is int
    assert error_of(check, {}, target, "g") == "g.size: is missing; add g.size=..."
    assert error_of(check, {"size": "???"}, target) == "size: is missing; add size=..."
    line = "g.sise=1: unknown option; did you mean 'g.size'?"
    assert error_of(check, {"sise": 1}, target, "g") == line
    # A positional argument is not an option.
    assert error_of(check, {"runtime": 1, "size": 1}, target).startswith(
        "runtime=1: unknown option"
    )
    assert error_of(check, {"size": 1, "mode": "c"}, target, "g").startswith(
        "g.mode=c: unknown choice"
    )


FORBIDDEN = [
    "os.system",
    "builtins.eval",
    "eval",
    "",
    "ddpm.data.codec.Codec",
    "ddpm.data.codec.np.load",
    "ddpm.data.codec_from_state.__globals__",
    "ddpm.data.Codec.__init_subclass__",
    "ddpm.data.__all__",
    "ddpm.data.__loader__.load_module",
    "ddpm.data.__name__",
    "ddpm.data.images.os.system",
    "ddpm.data.Dataset",
    "ddpm.data.UNAUGMENTED_KEY",
    "ddpm.data.split",
    "ddpm.data.split.split",
    "ddpm.data.split.Subset",
    "ddpm.data.split.Split",
    "ddpm.instantiate.load_plugins",
    "ddpm.training.checkpoint.save",
    "ddpm.training.trainer",
    "ddpm.diffusion",
    "torch.load",
    "hydra.utils.instantiate",
    ".ddpm.data.Digits",
    "ddpm.data.Digits ",
    "ddpm.data..Digits",
]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_targets_that_are_not_exported_are_rejected(name):
    line = error_of(build, {"_target_": name}, "data")
    assert line.startswith(f"data._target_={name}: is not exported by ddpm or by a plugin")


@pytest.mark.parametrize("node", [None, {}, {"_target_": None}, {"_target_": ["a"]}, "a", 3])
def test_a_node_without_a_target(node):
    assert error_of(build, node, "data") == "data: is missing; choose one with data=..."


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("ddpm.data.codec_from_state", ()),
        ("ddpm.diffusion.GaussianDiffusion", ()),
        ("ddpm.diffusion.cosine", (1, 2)),
    ],
)
def test_a_target_of_another_kind(name, runtime):
    line = error_of(build, {"_target_": name}, "data", *runtime)
    assert (
        line
        == f"data._target_={name}: is not a valid target for this option; choose one with data=..."
    )


def test_an_error_of_the_constructor_has_the_key_of_its_node():
    node = {"_target_": "ddpm.diffusion.cosine", "num_steps": 0}
    assert error_of(build, node, "schedule") == "schedule.num_steps=0: needs at least 1 step"
    assert build({**node, "num_steps": 7}, "schedule").num_steps == 7


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "mine_for_a_test.py").write_text(
        "__all__ = ['Mine', 'Few', 'number']\nnumber = 3\n"
        "class Mine:\n    def __init__(self, *, size: int = 1): self.size = size\n"
        "class Hidden: pass\n"
        "from ddpm.data import Digits\n"
        "class Few(Digits):\n"
        "    def __init__(self, *, count: int = 20):\n"
        "        super().__init__()\n        self.count = count\n"
        "    def __len__(self): return self.count\n"
        "    def own_split(self): return Few(count=3)\n"
    )
    (tmp_path / "bare_for_a_test.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield "mine_for_a_test"
    load_plugins([])


def test_plugins_export_their_all(plugin):
    node = {"_target_": f"{plugin}.Mine", "size": 1e1}
    assert "is not exported by ddpm or by a plugin" in error_of(build, node, "data")
    load_plugins([plugin])
    assert build(node, "data").size == 10
    for name in ("Hidden", "number", "__all__"):
        line = error_of(build, {"_target_": f"{plugin}.{name}"}, "data")
        assert f"is not a class in the __all__ of {plugin}; add it there" in line
    load_plugins([])
    assert "is not exported by ddpm or by a plugin" in error_of(build, node, "data")
    line = error_of(load_plugins, ["bare_for_a_test"])
    assert line.startswith("plugins=[bare_for_a_test]: bare_for_a_test has no __all__")


def test_a_config_survives_yaml_without_evaluation():
    config = {
        "seed": 0,
        "trainer": {"precision": "no", "lr": 1e-4, "adam_betas": [0.9, 0.999], "clip": None},
        "data": {"path": "${oc.env:HOME}", "flip": False, "key": "1e5", "name": "yes"},
        "model": {"empty": "", "dims": ["${seed}", 2], "deep": {"a": {"b": "12"}}},
    }
    again = from_yaml(to_yaml(config), "c.yaml")
    assert again == config
    assert type(again["data"]["key"]) is str and type(again["trainer"]["lr"]) is float


def test_plain_resolves_interpolations_and_rejects_missing_values():
    config = OmegaConf.create({"a": 1, "b": {"c": "${a}"}})
    assert plain(config) == {"a": 1, "b": {"c": 1}}
    missing = OmegaConf.create({"b": {"c": "???"}, "a": "???"})
    assert error_of(plain, missing) == "a: is missing (so are b.c); add a=..."
    line = error_of(plain, OmegaConf.create({"b": {"c": "${nowhere}"}}))
    assert line.startswith("b.c: cannot be resolved: ") and "nowhere" in line


MODEL = {"_target_": "ddpm.models.UNet", "dim": 8, "dim_mults": [1, 2]}


def data_spec(num_classes=None):
    from ddpm.data import ImageCodec

    names = None if num_classes is None else [str(n) for n in range(num_classes)]
    return DataSpec((1, 8, 8), num_classes, names, ImageCodec((1, 8, 8)))


def weights(seed, before=0):
    torch.manual_seed(before)
    torch.rand(before)
    process = GaussianDiffusion(cosine(), PredV())
    net = instantiate.network({"seed": seed, "model": MODEL}, data_spec(), process)
    return net.state_dict()


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_initial_weights_are_a_function_of_the_seed():
    assert equal(weights(0), weights(0, before=5))
    assert not equal(weights(0), weights(1))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    process = GaussianDiffusion(cosine(), PredV())
    instantiate.network({"seed": 0, "model": MODEL}, data_spec(), process)
    assert torch.equal(torch.rand(2), expected), "the random state of the caller was touched"


@pytest.mark.parametrize(("dropout", "num_embeddings"), [(0.0, 4), (0.1, 5)])
def test_label_dropout_adds_one_class(dropout, num_embeddings):
    process = GaussianDiffusion(cosine(), PredV(), label_dropout=dropout)
    net = instantiate.network({"seed": 0, "model": MODEL}, data_spec(4), process)
    tables = [m for m in net.modules() if isinstance(m, torch.nn.Embedding)]
    assert [table.num_embeddings for table in tables] == [num_embeddings]
    bare = instantiate.network({"seed": 0, "model": MODEL}, data_spec(None), process)
    assert not any(isinstance(m, torch.nn.Embedding) for m in bare.modules())


def test_label_dropout_without_labels_is_rejected():
    config = {
        "schedule": {"_target_": "ddpm.diffusion.cosine"},
        "objective": {"_target_": "ddpm.diffusion.PredV"},
        "diffusion": {"_target_": "ddpm.diffusion.GaussianDiffusion", "label_dropout": 0.1},
    }
    line = error_of(instantiate.diffusion, config, data_spec(None))
    assert line.startswith("diffusion.label_dropout=0.1: the data have no labels to drop")
    assert instantiate.diffusion(config, data_spec(4)).loss_options.label_dropout == 0.1


def test_steps_of_a_sampler():
    node = {"_target_": "ddpm.samplers.DDIM", "steps": 7}
    assert instantiate.sampler(node).steps == 7
    bad = {**node, "steps": 0}
    assert error_of(instantiate.sampler, bad).startswith("sampler.steps=0: must be at least 1")


def test_trainer_options_have_defaults():
    options = instantiate.trainer_options(
        {"trainer": {"_target_": "x", "lr": 1, "precision": False}}
    )
    assert (options.lr, options.precision, options.max_steps) == (1.0, "no", 100_000)
    line = error_of(instantiate.trainer_options, {"trainer": {"lrr": 1}})
    assert line == "trainer.lrr=1: unknown option; did you mean 'trainer.lr'?"


def test_a_data_spec_is_restored_from_its_state():
    for spec in (data_spec(), data_spec(3)):
        again = DataSpec.from_metadata(spec.state())
        assert (again.shape, again.num_classes, again.class_names) == (
            spec.shape,
            spec.num_classes,
            spec.class_names,
        )
        assert again.codec.state() == spec.codec.state()
    state = data_spec().state()
    del state["num_classes"]
    assert "has no 'num_classes'" in error_of(DataSpec.from_metadata, state)


def test_missing_options_are_completed_with_defaults():
    short = {"seed": 3, "schedule": {"_target_": "ddpm.diffusion.cosine", "num_steps": 5}}
    assert config_with_defaults(short) == {
        "seed": 3,
        "schedule": {
            "_target_": "ddpm.diffusion.cosine",
            "num_steps": 5,
            "offset": 0.008,
            "max_beta": 0.999,
            "zero_terminal_snr": False,
        },
    }


DIGITS = {"_target_": "ddpm.data.Digits"}


def data(**options):
    return {"data": {**DIGITS, **options}}


def test_val_fraction_holds_out_data_of_any_class():
    parts = instantiate.splits(data(class_cond=True, val_fraction=0.1))
    assert parts.val is not None and parts.val.num_classes == parts.train.num_classes == 10
    assert (len(parts.train), len(parts.val)) == (1617, 180)
    assert len(instantiate.dataset(data(val_fraction=0.1))) == 1617
    for whole in (data(), data(val_fraction=0), data(val_fraction=0.0)):
        parts = instantiate.splits(whole)
        assert len(parts.train) == len(instantiate.dataset(whole)) == 1797 and parts.val is None


def test_the_config_is_not_modified():
    config = data(val_fraction=0.1)
    instantiate.splits(config)
    assert config == data(val_fraction=0.1)


@pytest.mark.parametrize(
    ("node", "line"),
    [
        (data(val_fraction="many"), "data.val_fraction=many: must be a number"),
        (data(val_fraction=None), "data.val_fraction=null: must be a number"),
        (data(val_fraction=True), "data.val_fraction=true: must be a number"),
        (data(val_fraction=1), "data.val_fraction=1.0: must be at least 0 and below 1, such as "
         "0.1"),
        (data(val_fraction=1e-4), "data.val_fraction=0.0001: would hold out 0 of 1797 items, and "
         "neither part may be empty; raise it, or leave it at 0"),
        (data(val_fraction=0.1, image_sise=8), "data.image_sise=8: unknown option; did "
         "you mean 'data.image_size'?"),
        (data(val_fraction=0.1, image_size=0), "data.image_size=0: must be a positive number of "
         "pixels, or two: [H,W]"),
        ({"data": {"val_fraction": 0.1}}, "data: is missing; choose one with data=..."),
        ({"data": None}, "data: is missing; choose one with data=..."),
        ({"data": "digits"}, "data: is missing; choose one with data=..."),
    ],
)  # fmt: skip
def test_invalid_data(node, line):
    assert error_of(instantiate.splits, node) == line
    assert error_of(instantiate.dataset, node) == line


def test_data_of_a_plugin_are_split_by_fraction_or_by_own_split(plugin):
    load_plugins([plugin])
    node = {"_target_": f"{plugin}.Few", "count": 10}
    parts = instantiate.splits({"data": {**node, "val_fraction": 0.3}})
    assert (len(parts.train), parts.val and len(parts.val)) == (7, 3)
    assert parts.val is not None
    expected = instantiate.dataset({"data": node}).fetch([1, 6, 9], [0] * 3)[0]
    assert torch.equal(parts.val.fetch([0, 1, 2], [0] * 3)[0], expected)
    own = instantiate.splits({"data": node})
    assert (len(own.train), own.val and len(own.val)) == (10, 3)
    assert with_defaults({"_target_": f"{plugin}.Few"}, "data") == {
        "_target_": f"{plugin}.Few",
        "count": 20,
        "val_fraction": 0.0,
    }


def test_a_run_of_a_version_without_val_fraction_has_no_validation_data(tmp_path):
    old, new = data(image_size=None, class_cond=False), data(val_fraction=0.0)
    assert config_with_defaults(old) == config_with_defaults(new)
    assert config_with_defaults(old)["data"]["val_fraction"] == 0.0
    with_validation = config_with_defaults(data(val_fraction=0.2))
    assert with_validation["data"]["val_fraction"] == 0.2
    assert "val_fraction" not in with_defaults(MODEL, "model")
    check_compatible(config_with_defaults(old), config_with_defaults(new), "resume", tmp_path)
    line = error_of(
        check_compatible, config_with_defaults(old), with_validation, "resume", tmp_path
    )
    assert "data.val_fraction (0.0 there, 0.2 here)" in line
