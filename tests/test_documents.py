"""Commands and code in the README and in docs/.

The options of all commands exist, Python runs on a tiny model, and the classes of docs/extending.md
train and sample. A block after ``<!-- needs: ... -->`` is not run.
"""

import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.cli import app, argument_errors, train
from ddpm.cli.usage import usage
from ddpm.config.comments import Groups
from ddpm.config.location import config_dir
from ddpm.samplers import Sampler
from scripts import option_reference
from tests.cli.conftest import TINY, command  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"bash", "python", "text", "yaml", "{toctree}", "{include}", "{eval-rst}"}
FENCE = re.compile(
    r"(?:<!-- needs: (?P<needs>.+?) -->\n)?^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    needs: str | None

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks(*languages):
    """Return the blocks in these languages of all pages."""
    result = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text[: match.start()].count("\n") + 1
            result.append(Block(path.name, line, match["language"], match["text"], match["needs"]))
    return [each for each in result if not languages or each.language in languages]


def commands(block):
    """Return the commands of a shell block, as lists of words."""
    text = block.text.replace("\\\n", " ").replace(" && ", "\n")
    lines = (shlex.split(line, comments=True) for line in text.splitlines())
    return [words for words in lines if words]


def ddpm_arguments(words):
    """Return name and arguments of the ddpm command in a line, also after a launcher, or None."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0].startswith("ddpm-"):
        return words[0].removeprefix("ddpm-"), words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "ddpm.cli.train":
        return "train", words[words.index("-m") + 2 :]
    return None


def cases():
    """Return all command lines of ddpm, also of blocks with requirements."""
    result = {}
    for block in blocks("bash"):
        for words in commands(block):
            parsed = ddpm_arguments(words) if "$" not in " ".join(words) else None
            if parsed is not None:
                result.setdefault((parsed[0], *parsed[1]), str(block))
    for path in PAGES:
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        for line in re.findall(r"`(ddpm-[a-z]+ [^`]*)`", text):
            name, *arguments = shlex.split(line)
            if "..." not in line and all("=" in each or each[0] == "-" for each in arguments):
                result.setdefault((name.removeprefix("ddpm-"), *arguments), path.name)
    return [
        pytest.param(name, arguments, id=f"{place} {' '.join([name, *arguments])[:60]}")
        for (name, *arguments), place in result.items()
    ]


def alternatives(argument):
    """Return the arguments of the jobs of a sweep, one per value."""
    key, _, value = argument.partition("=")
    return [f"{key}={each}" for each in re.split(r",(?![^\[]*\])", value)]


def options_of(name, arguments):
    """Return the keys in ``--help`` for the choices in the arguments, and those of evaluation."""
    swept = [each for each in map(alternatives, arguments) if len(each) > 1]
    choices = [choice for each in swept for choice in each]
    shown = "\n".join([usage(name, arguments), *(usage(name, [each]) for each in choices)])
    keys = set(re.findall(r"^  ([\w.@]+)=", shown, re.MULTILINE))
    for group in ("sampler", "extractor"):
        for choice in Groups().choices(group):
            inner = Groups().read(group, choice).options
            keys |= {f"evaluation.{group}.{option.key}" for option in inner}
    return keys


@pytest.mark.parametrize(("name", "arguments"), cases())
def test_the_options_of_a_command_exist(name, arguments):
    argument_errors.check_arguments(name, arguments)
    keys = options_of(name, arguments)
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        free = ("hydra", "network.", "-", "my_configs")
        own = key.partition(".")[0] + "._target_="  # the options of a class of the page
        if key.startswith(free) or any(own in each for each in arguments):
            continue
        if "my_configs" in arguments:
            continue
        key = "init.ckpt" if key == "init" else key
        assert equals and key in keys, argument
        for choice in alternatives(argument) if Groups().choices(key) else []:
            assert choice.partition("=")[2] in Groups().choices(key), argument


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments"), cases())
def test_the_config_of_a_command_composes(name, arguments):
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if "my_configs" in arguments:
        pytest.skip("test_own_config_files runs it")
    GlobalHydra.instance().clear()
    plain = [app.readable(each, arguments) for each in arguments if not each.startswith("-")]
    plain = [each for each in plain if not each.startswith("hydra")]
    if "-m" in arguments:
        plain = [alternatives(each)[0] for each in plain]
        keys = options_of(
            name, plain
        )  # an option that is swept is left out where it does not exist
        plain = [each for each in plain if each.partition("=")[0] in keys]
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        assert compose(name, overrides=plain)


def test_blocks_are_fenced_and_have_a_language():
    assert {block.language for block in blocks()} <= LANGUAGES
    for path in PAGES:
        outside = FENCE.sub("", path.read_text(encoding="utf-8"))
        assert "```" not in outside, path.name
        lines = outside.splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            assert not (line.startswith("    ") and not before.strip()), f"{path.name}: {line}"


def test_the_readme_is_short_and_has_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert "\nmake demo " in text and "\nmake test " in text


def test_other_commands_exist():
    """Targets of make, scripts with their flags, extras of pip."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for block in blocks("bash"):
        if block.needs == "Slurm":
            continue
        for words in commands(block):
            if (
                ddpm_arguments(words) is not None
                or words[:2] == ["git", "clone"]
                or words[0] == "cd"
            ):
                continue
            if words[0] == "make":
                assert set(words[1:]) <= set(targets), str(block)
            elif words[0] == "python":
                source = (ROOT / words[1]).read_text()
                assert all(flag in source for flag in words[2:] if flag.startswith("--")), str(
                    block
                )
            else:
                match = re.fullmatch(r"pip install \.(?:\[(\w+)\])?", " ".join(words))
                assert match and (match[1] is None or match[1] in extras), f"{block}: {words}"


def test_links_have_targets():
    for path in PAGES:
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("http"):
                continue
            file, _, heading = target.partition("#")
            linked = (path.parent / file) if file else path
            assert linked.exists(), f"{path.name}: {target}"
            slugs = [
                re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in linked.read_text(encoding="utf-8").splitlines() if line.startswith("#")
            ] if heading else [heading]  # fmt: skip
            assert heading in slugs, f"{path.name}: {target}"


def test_every_page_with_python_is_tested():
    pages = {block.page for block in blocks("python") if block.needs is None}
    assert pages == {*PYTHON, "extending.md"}


def test_the_option_reference_is_current():
    assert option_reference.PAGE.read_text(encoding="utf-8") == option_reference.page(), (
        "run python scripts/option_reference.py"
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder with pictures and with tiny models, by the names on the pages."""
    folder = tmp_path_factory.mktemp("documents")
    options = ["name=digits", "trainer.max_steps=2", *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["ddpm-train", *options])
        train.main()
    for name in ("demo", "mine"):
        (folder / "outputs" / name).symlink_to("digits")
    for name in ("cat", "dog"):
        pixels = np.random.default_rng(0).integers(0, 255, (12, 10), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


PYTHON = ["README.md", "python.md"]


@pytest.fixture
def few_steps(monkeypatch):
    """Limit samplers to four steps."""
    timesteps = Sampler.timesteps

    def few(self, *arguments, **options):
        times = timesteps(self, *arguments, **options)
        if len(times) <= 5:
            return times
        return [*times[:-1][:: (len(times) - 1) // 3], times[-1]]

    monkeypatch.setattr(Sampler, "timesteps", few)


@pytest.mark.parametrize("page", PYTHON)
def test_python_of_a_page_runs(models, few_steps, monkeypatch, page):
    code = [each for each in blocks("python") if each.page == page and each.needs is None]
    monkeypatch.chdir(models)
    names = {"__name__": page}
    for block in code:
        exec(compile(block.text, str(block), "exec"), names)


def test_messages_match_the_output_of_the_commands(models, command, monkeypatch):  # noqa: F811
    """Text blocks with lines that begin with ``$`` are commands with their output."""
    monkeypatch.chdir(models)
    seen = 0
    for block in blocks("text"):
        lines = block.text.splitlines()
        for prompt, answer in pairwise(lines):
            if prompt.startswith("$ "):
                name, *arguments = shlex.split(prompt.removeprefix("$ "))
                ended = command(name.removeprefix("ddpm-"), *arguments)
                assert ended.line == answer
                seen += 1
    assert seen >= 3


EXAMPLES = ["disks", "trapezoid", pytest.param("p2", marks=pytest.mark.slow), "plain"]


@pytest.mark.parametrize("module", EXAMPLES)
def test_own_classes_train_and_sample(models, few_steps, command, monkeypatch, module):  # noqa: F811
    """Write the modules of the page to files, then run the commands and the Python below."""
    monkeypatch.chdir(models)
    page = [each for each in blocks() if each.page == "extending.md"]
    starts = [n for n, each in enumerate(page) if each.text.startswith(f"# {module}.py\n")]
    following = page[starts[0] + 1 :]
    ends = [
        n for n, each in enumerate(following)
        if re.match(r"# \w+\.py\n", each.text) or each.language == "yaml"
    ]  # fmt: skip
    assert page[starts[0]].text.count("\n") <= 30
    Path(f"{module}.py").write_text(page[starts[0]].text)
    for block in following[: ends[0]]:
        if block.language == "python":
            monkeypatch.syspath_prepend(str(models))
            exec(compile(block.text, str(block), "exec"), {"__name__": module})
        for name, arguments in map(
            ddpm_arguments, commands(block) if block.language == "bash" else []
        ):
            if "name=digits" not in arguments:
                assert_runs(command, name, arguments)


def assert_runs(command, name, arguments):  # noqa: F811
    """Run a command of a page with few steps."""
    few = {"train": ["trainer.max_steps=1", "trainer.preview_every=0", "trainer.batch_size=4"],
           "sample": ["num_samples=2", "sampler.steps=2"]}[name]  # fmt: skip
    small = ["model.dim=8"] if name == "train" and not any("model." in a for a in arguments) else []
    keys = [each.partition("=")[0] for each in few]
    others = [each for each in arguments if each.partition("=")[0] not in keys]
    ended = command(name, *others, *few, *small)
    assert ended.status == 0, ended.err


def test_own_config_files(models, command, monkeypatch):  # noqa: F811
    monkeypatch.chdir(models)
    page = [each for each in blocks() if each.page == "extending.md"]
    (module,) = [each for each in page if each.text.startswith("# trapezoid.py\n")]
    (config,) = [each for each in page if each.language == "yaml"]
    Path("trapezoid.py").write_text(module.text)
    Path("my_configs/sampler").mkdir(parents=True)
    Path("my_configs/sampler/trapezoid.yaml").write_text(config.text)
    (parsed,) = [ddpm_arguments(words) for words in commands(page[-1])]
    assert_runs(command, *parsed)
    shown = command("sample", "--config-dir", "my_configs", "sampler=trapezoid", "--help").out
    assert "  sampler.steps=25            steps; two network calls each\n" in shown


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    """``make docs``, where its extra is installed."""
    for module in ("furo", "myst_parser", "sphinx"):
        pytest.importorskip(module)
    from sphinx.cmd.build import main

    arguments = ["-q", "-W", "--keep-going", "-c", str(ROOT / "docs"), str(ROOT), str(tmp_path)]
    assert main(arguments) == 0
    assert (tmp_path / "docs" / "api.html").is_file()
