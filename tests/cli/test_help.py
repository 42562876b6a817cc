"""--help: completeness, and no import of a library."""

import re
import subprocess
import sys
from typing import Literal, get_args, get_origin

import pytest

from ddpm.cli.usage import usage
from ddpm.config.comments import Groups, Option, read
from ddpm.config.location import config_dir
from ddpm.config.schema import hints_of

GROUPS = {
    "train": [
        *("data", "model", "schedule", "timesteps", "objective", "diffusion", "sampler"),
        *("trainer", "evaluation", "experiment"),
    ],
    "sample": ["sampler"],
    "interpolate": ["sampler"],
    "evaluate": ["sampler", "extractor"],
    "import": ["schedule", "timesteps", "objective", "diffusion", "data"],
    "average": [],
    "export": [],
}
LIBRARIES = ("torch", "hydra", "omegaconf", "yaml", "pydantic", "numpy", "tqdm")
FILES = sorted(
    path for path in config_dir().glob("*/*.yaml") if not read(path).is_global
)  # of a group


def words(text):
    """Return text without line breaks and repeated spaces."""
    return " ".join(text.split())


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", GROUPS)
def test_help_lists_groups_choices_and_options(command, name, flag):
    ended = command(name, "seed=1", flag)
    assert ended.status == 0 and ended.err == ""
    assert ended.out.startswith(f"usage: ddpm-{name} ")
    root = read(config_dir() / f"{name}.yaml")
    assert [group.key for group in root.groups] == GROUPS[name]
    for group in GROUPS[name]:
        files = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
        shown = words(ended.out).replace(" | ", "|")
        assert re.search(rf" {group}=\S+ {re.escape('|'.join(files))} ", shown)
    for line in root.about:
        assert line in ended.out
    assert len(root.options) >= 6
    for key, default, comment in root.options:
        default, comment = (
            ("...", f"required; {comment}") if default == "???" else (default, comment)
        )
        assert f" {key}={default} {comment} " in words(ended.out)
    assert max(map(len, ended.out.splitlines())) <= 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_help_has_the_options_of_the_chosen_file(path):
    group = path.parent.name
    root = "evaluate" if group == "extractor" else "train"
    shown = words(usage(root, [f"{group}={path.stem}"]))
    for key, _, comment in read(path).options:
        assert f" {group}.{key}" in shown and comment in shown


def test_groups_of_a_group_are_shown():
    shown = words(usage("train"))
    assert " sampler@evaluation.sampler=unipc ddim|ddpm|" in shown
    assert " extractor@evaluation.extractor=auto auto|clip|" in shown


@pytest.mark.parametrize("name", ["train", "import"])
def test_choices_that_another_choice_selects_are_shown(name):
    shown = words(usage(name, ["objective=edm"]))
    assert " schedule=edm " in shown and " schedule.sigma_max=80.0 " in shown
    assert " timesteps=log_normal " in shown
    shown = words(usage(name, ["objective=pred_flow", "schedule=cosine", "diffusion=iddpm_vlb"]))
    assert " schedule.offset=0.008 " in shown and " timesteps=loss_second_moment " in shown


def test_choices_and_options_of_a_recipe_are_shown():
    shown = usage("train", ["experiment=edm_cifar10", "sampler=ddim"])
    for choice in ("data=cifar", "objective=edm", "timesteps=log_normal", "sampler=ddim"):
        assert f"\n  {choice} " in shown
    section = shown[shown.index("\nexperiment=edm_cifar10: EDM on CIFAR-10") :]
    assert "\n  objective.sigma_data=0.5\n" in section and "Published: FID 1.97" in words(section)
    assert max(map(len, shown.splitlines())) <= 100


def test_defaults_for_the_data_are_shown():
    assert "\n  trainer.max_steps=1000 trainer.batch_size=64 " in usage("train")
    assert "model.model_channels=32" in usage("train", ["model=iddpm_unet"])
    assert "other defaults" not in usage("train", ["data=cifar"])


@pytest.mark.parametrize("flag", [["--config-dir", "{}"], ["-cd", "{}"], ["--config-dir={}"]])
def test_groups_of_the_user(tmp_path, flag):
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler/mine.yaml").write_text(
        "# A sampler of mine.\ndefaults:\n  - ddim\n  - _self_\n_target_: mine.Mine\n"
        "eta: 0.5\nkind: a  # a or b,\n         # on two lines\n"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/one.yaml").write_text("# @package _global_\nseed: 1\n")
    shown = usage("sample", [each.format(tmp_path) for each in flag] + ["sampler=mine"])
    assert "  sampler=mine                ddim|ddpm|deis|dpmpp|heun|ipndm|mine|unipc\n" in shown
    assert "  +mine=...                   one\n" in shown
    assert "\nsampler=mine: A sampler of mine\n" in shown
    assert "  sampler.kind=a              a or b, on two lines\n" in shown
    (eta,) = [
        each for each in read(config_dir() / "sampler/ddim.yaml").options if each.key == "eta"
    ]
    assert f"  sampler.eta=0.5             {eta.comment}\n" in shown
    assert "sampler.spacing=uniform" in shown


@pytest.mark.parametrize("name", GROUPS)
def test_every_option_of_a_command_has_a_comment(name):
    assert all(each.comment for each in read(config_dir() / f"{name}.yaml").options)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_comments_of_a_group_name_all_choices(path):
    """An option with a fixed set of values has all of them in its comment."""
    from hydra.utils import get_object

    target = re.search(r"^_target_: (\S+)", path.read_text(), re.MULTILINE)
    file = read(path)
    assert file.about and all(each.comment for each in file.options)
    made = get_object(target[1]) if target else None
    hints = hints_of(made) if made else {}
    for option in file.options:
        for choice in choices_of(hints.get(option.key)):
            assert re.search(rf"\b{re.escape(choice)}", option.comment), (option.key, choice)


def choices_of(hint):
    if get_origin(hint) is Literal:
        return [str(each) for each in get_args(hint) if isinstance(each, str)]
    return [choice for each in get_args(hint) for choice in choices_of(each)]


def test_options_are_read_with_whole_comments(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "# About this,\n# and that.\nhydra:\n  sweep:\n    dir: x  # not an option\n\n"
        'defaults:\n  - data: digits  # why\n  - base\n\nfirst: "no"  # one, # and\n   # two\n'
        "pair: {a: 1, b: [2]}\nlist: [1, 2]\nempty: {}\nouter:  # of all\n"
        "  inner:\n    x: 1  # deep\nlast: 1.0e-4 # close\n"
    )
    file = read(tmp_path / "a.yaml")
    assert file.about == ["About this,", "and that."]
    assert file.groups == [Option("data", "digits", "why")] and file.bases == []
    assert file.options == [
        Option("first", "no", "one, # and two"),
        Option("pair.a", "1", ""),
        Option("pair.b", "[2]", ""),
        Option("list", "[1, 2]", ""),
        Option("empty", "{}", ""),
        Option("outer", "", "of all"),
        Option("outer.inner", "", ""),
        Option("outer.inner.x", "1", "deep"),
        Option("last", "1.0e-4", "close"),
    ]
    assert Groups().read("data", "unknown").options == []


@pytest.mark.parametrize("name", GROUPS)
def test_help_imports_no_library(name):
    module = {"import": "importing", "export": "exporting"}.get(name, name)
    code = (
        f"import sys; sys.argv = ['x', '--help']; from ddpm.cli import {module}; {module}.main(); "
        f"print('loaded', [m for m in {LIBRARIES} if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "loaded []"
