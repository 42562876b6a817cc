"""--help: at once, and complete."""

import re
import subprocess
import sys

import pytest

from ddpm.cli.app import config_dir

COMMANDS = {
    "train": [
        *("data", "diffusion", "evaluation", "model", "objective"),
        *("sampler", "schedule", "timesteps", "trainer"),
    ],
    "sample": ["sampler"],
    "interpolate": ["sampler"],
    "evaluate": ["extractor", "sampler"],
    "import": ["data", "diffusion", "objective", "schedule", "timesteps"],
    "export": [],
}


def lines_of(name):
    return (config_dir() / f"{name}.yaml").read_text().splitlines()


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_groups_choices_and_options(command, name, flag):
    ended = command(name, "seed=1", flag)
    assert ended.status == 0 and ended.err == ""
    told = ended.out.splitlines()
    assert told[0].startswith(f"usage: ddpm-{name} ")
    groups = [line.strip().partition("=") for line in told if re.match(r"  \w+=", line)]
    assert [group for group, _, _ in groups] == COMMANDS[name]
    for group, _, choices in groups:
        files = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
        assert choices.split("|") == files
    options = [line for line in lines_of(name) if re.match(r"[a-z_]+: \S", line)]
    assert len(options) >= 6
    for line in options:
        assert f"  {line}" in told, "an option, or its comment, is not told"
    for line in lines_of(name):
        if line.startswith("# "):
            assert line.removeprefix("# ") in told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_word_of_explanation_or_a_telling_name(name):
    bare = {
        line.partition(":")[0]
        for line in lines_of(name)
        if re.match(r"[a-z_]+: \S", line) and "#" not in line
    }
    assert bare <= {"num_samples"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_does_not_wait_for_torch(name):
    module = {"import": "importing", "export": "exporting"}.get(name, name)
    code = (
        f"import sys; sys.argv = ['x', '--help']; from ddpm.cli import {module}; {module}.main(); "
        "print('loaded', [m for m in ('torch', 'hydra', 'numpy') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "loaded []"
