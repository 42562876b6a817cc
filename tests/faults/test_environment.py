"""Names, permissions, locales and machines that a run must work with."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = str(Path(__file__).resolve().parents[2])
FEW = ("trainer.max_steps=2", "trainer.preview_every=2", "trainer.preview_samples=1")
QUICK = ("num_samples=2", "steps=2")


def pictures(folder, count=4):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8), 10 * number, np.uint8)).save(folder / f"{number}.png")


def fine(ended):
    assert ended.status == 0, ended.err
    assert "Traceback" not in ended.err
    return ended.out


# names


@pytest.mark.parametrize(
    "odd",
    [
        "a=b",
        "bücher 図",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("~x", "two words", "(1) it's 50%", "-m", "$HOME")
        ),
    ],
)
def test_folders_of_any_name(command, tiny, odd):
    """Names of the folders of the pictures, of all runs, and of the run."""
    pictures(Path(odd, "pictures"))
    data = ("data=folder", f"data.path={odd}/pictures")
    options = (f"out={odd}/runs", f"name={odd}")
    ended = command("train", *data, *options, *FEW, *tiny)
    assert f"results go to {odd}/runs/{odd}\n" in fine(ended)
    run = Path(odd, "runs", odd)
    assert sorted(os.listdir(odd)) == ["pictures", "runs"] and os.listdir() == [odd]
    again = command("train", f"resume={run}", "trainer.max_steps=3")
    assert "from step 2 to step 3" in fine(again)
    fine(command("sample", f"ckpt={run}", f"out={odd}/drawn", *QUICK))
    assert (run / "checkpoints/step-00000003/manifest.json").is_file()
    assert len(list(Path(odd, "drawn").rglob("0000?.png"))) == 2


@pytest.mark.parametrize("odd", ["a{b}", "a[1]", "a,b"])
def test_names_that_must_be_quoted(command, tiny, odd):
    """Brackets and commas mean lists and sweeps unless they are quoted."""
    pictures(Path(odd))
    ended = command("train", "data=folder", f"data.path={odd}", "name=a", *FEW, *tiny)
    assert ended.status == 1 and f"data.path={odd}" in ended.line
    assert os.listdir() == [odd]
    fine(command("train", "data=folder", f'data.path="{odd}"', "name=a", *FEW, *tiny))


# permissions


def test_private_umask(command, tiny):
    before = os.umask(0o077)
    try:
        fine(command("train", "name=a", *FEW, *tiny))
        fine(command("train", "resume=outputs/a", "trainer.max_steps=3"))
        fine(command("sample", "ckpt=outputs/a", *QUICK))
    finally:
        os.umask(before)
    paths = [path for path in Path().rglob("*") if not path.is_symlink()]
    assert len(paths) > 15
    for path in paths:
        usual = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == usual, path


def test_a_folder_that_may_not_be_written_to(command, tiny, permissions):
    Path("locked").mkdir(mode=0o555)
    remedy = "cannot be written (Permission denied); choose another folder with out="
    with permissions():
        named = command("train", "out=locked", "name=a", *FEW, *tiny)
        below = command("train", "out=locked/runs", "name=a", *FEW, *tiny)
        nameless = command("train", "out=locked/runs", *FEW, *tiny)
    for ended, place in ((named, "locked/a"), (below, "locked/runs/a"), (nameless, "locked/runs")):
        assert ended.status == 1
        start, _, end = ended.line.partition(": ")[2].partition(": ")
        assert start.startswith(f"out={place}") and end == remedy
    assert os.listdir("locked") == []


def test_run_folder_that_has_become_read_only(command, tiny, permissions):
    fine(command("train", "name=a", *FEW, *tiny))
    before = snapshot(Path("outputs"))
    run = Path("outputs/a")
    folders = [run, *(path for path in run.rglob("*") if path.is_dir())]
    for each in folders:
        each.chmod(0o555)
    try:
        with permissions():
            ended = command("train", "resume=outputs/a", "trainer.max_steps=4")
            drawn = command("sample", "ckpt=outputs/a", *QUICK)
    finally:
        for each in folders:
            each.chmod(0o755)
    assert ended.status == drawn.status == 1
    assert "outputs/a" in ended.line and "Permission denied" in ended.line
    assert "outputs/a" in drawn.line and "Permission denied" in drawn.line
    assert drawn.line.endswith("choose another folder with out=")
    assert snapshot(Path("outputs")) == before


def snapshot(folder):
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# machines

WATCH = """\
import os, sys

def listen(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["WATCHED"], "a") as file:
            print(event, arguments, file=file)
        raise OSError("network is unreachable")

sys.addaudithook(listen)
with open(os.environ["WATCHED"], "a") as file:
    print("watching", file=file)
"""


def alone(tmp_path, *arguments, **variables):
    """Run a command in a process of its own without a network, and check that it uses none."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site/sitecustomize.py").write_text(WATCH)
    unset = ("LANG", "LANGUAGE", "PYTHONUTF8", "PYTHONIOENCODING", "MPLCONFIGDIR")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "XDG_"))}
    environment = {k: v for k, v in inherited.items() if k not in unset} | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), ROOT]),
        "WATCHED": str(tmp_path / "watched"),
        **variables,
    }
    ended = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert set((tmp_path / "watched").read_text().splitlines()) == {"watching"}
    return ended


@pytest.mark.parametrize("home", ["/proc/none", "/proc"])
@pytest.mark.slow
def test_without_a_home_and_a_network(tmp_path, tiny, home):
    """A home directory that does not exist, and one that even root cannot write to."""
    options = ("name=a", "trainer.preview_every=1", *FEW, *tiny)
    ended = alone(tmp_path, "ddpm.cli.train", *options, HOME=home)
    assert ended.stdout.startswith(b"training to step 2 on ")
    assert b"done: outputs/a (loss.png, samples/, checkpoints/)\n" in ended.stdout
    lines = ended.stderr.decode().splitlines()
    # matplotlib warns about its font cache, and works without
    assert [line for line in lines if "matplotlib" not in line] == []
    assert sorted(os.listdir(tmp_path)) == ["outputs", "site", "watched"]


@pytest.mark.slow
def test_in_the_c_locale_and_an_odd_time_zone(tmp_path, tiny):
    pictures(tmp_path / "bücher")
    options = ("data=folder", "data.path=bücher", *FEW, *tiny)
    odd = {"LC_ALL": "C", "TZ": "XYZ-24:59:59"}
    ended = alone(tmp_path, "ddpm.cli.train", "name=größe", *options, **odd)
    assert "results go to outputs/größe\n".encode() in ended.stdout
    alone(tmp_path, "ddpm.cli.train", *options, **odd)  # named by the time
    names = sorted(os.listdir(tmp_path / "outputs"))
    assert len(names) == 3 and {"größe", "latest"} < set(names)
