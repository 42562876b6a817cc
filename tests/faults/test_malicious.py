"""Forged checkpoints with a matching manifest."""

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from ddpm.training import checkpoint
from tests.cli.conftest import TINY

ROOT = str(Path(__file__).resolve().parents[2])
STEP = "outputs/a/checkpoints/step-00000002"
ON = ("resume=outputs/a", "trainer.max_steps=3")
DRAW = ("ckpt=outputs/a", "num_samples=1", "steps=1")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return a folder with a run of two steps on a folder of pictures."""
    place = tmp_path_factory.mktemp("good")
    (place / "imgs").mkdir()
    Image.new("L", (8, 8), 100).save(place / "imgs/a.png")
    options = ("data=folder", "data.path=imgs", "name=a", "trainer.max_steps=2", *TINY)
    ended = process(place, "train", *options)
    assert ended.returncode == 0, ended.stderr
    return place


def process(place, name, *options):
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"ddpm.cli.{name}", *options],
        env={**os.environ, "PYTHONPATH": ROOT},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def run(command, good, tmp_path):
    """Copy the good run into the working directory of the commands."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True, symlinks=True)
    return command


def forge(name, content):
    """Write ``content`` to a file of the checkpoint, and its hash to the manifest."""
    Path(STEP, name).write_bytes(content)
    manifest = json.loads(Path(STEP, "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    Path(STEP, "manifest.json").write_text(json.dumps(manifest))


def damaged(reason):
    return f"ckpt={STEP}: is damaged: {reason}; use another checkpoint"


def snapshot():
    """Return the content of all files except the lock."""
    files = [path for path in Path().rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): path.read_bytes() for path in sorted(files)}


# state.pt


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def zipped(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Evil(), 2), zipped(Evil()), zipped({"optimizer": Evil()}), b"", b"\0" * 999],
    ids=["pickle", "zip", "inside", "nothing", "zeros"],
)
def test_state_that_would_run_code_is_rejected_and_not_read_by_sampling(run, content):
    forge("state.pt", content)
    before = snapshot()
    ended = run("train", *ON)
    assert ended.status == 1
    reason = damaged("state.pt contains objects that weights_only loading rejects")
    assert ended.line == f"ddpm-train: {reason}"
    assert snapshot() == before
    assert run("sample", *DRAW).status == 0
    assert not Path("pwned").exists()


@pytest.mark.parametrize("value", [[1, 2], None, torch.ones(2)], ids=["list", "none", "tensor"])
def test_state_of_another_type_is_rejected(run, value):
    forge("state.pt", zipped(value))
    ended = run("train", *ON)
    assert (ended.status, ended.line) == (
        1,
        "ddpm-train: " + damaged("state.pt is not the state of a training"),
    )


FOREIGN = [
    {"optimizer": {}},
    {"optimizer": {"state": {}, "param_groups": []}},
    {"optimizer": [1, 2]},
    {"ema": {}},
    {"ema": [1, 2]},
    {"ema": torch.ones(2)},
]


@pytest.mark.parametrize("other", FOREIGN, ids=str)
def test_state_of_another_network_is_rejected(run, other):
    state = torch.load(Path(STEP, "state.pt"), weights_only=True)
    forge("state.pt", zipped({**state, **other}))
    assert rejected(run) == MISFIT
    forge("state.pt", zipped({key: state[key] for key in state if key not in other}))
    assert rejected(run) == MISFIT


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors"])
def test_weights_of_another_network_are_rejected(run, name):
    forge(name, safetensors.torch.save({"w": torch.ones(3)}))
    assert rejected(run) == MISFIT


def test_weights_that_are_not_finite_are_rejected(run):
    weights = safetensors.torch.load(Path(STEP, "ema.safetensors").read_bytes())
    weights["init_conv.bias"][1:3] = torch.tensor([float("nan"), float("inf")])
    forge("ema.safetensors", safetensors.torch.save(weights))
    reason = damaged("ema.safetensors: 2 of 8 values of init_conv.bias are NaN or infinite")
    for name, options in (("sample", DRAW), ("export", DRAW[:1]), ("train", ON)):
        ended = run(name, *options)
        assert (ended.status, ended.line) == (1, f"ddpm-{name}: {reason}")


MISFIT = damaged("its weights and counters do not fit its config")


def rejected(run):
    """Return the error of resuming, which must not change any file."""
    before = snapshot()
    ended = run("train", *ON)
    assert ended.status == 1
    assert snapshot() == before
    return ended.line.removeprefix("ddpm-train: ")


# the config, in the checkpoint and beside it


def change(where, group, option, value):
    """Change an option in the config of the checkpoint or of the run."""
    header = json.loads(Path(STEP, "config.json").read_text())
    header["config"][group][option] = value
    forge("config.json", json.dumps(header).encode())
    if where == "config.json":
        Path("outputs/a/config.yaml").unlink()
    else:
        Path("outputs/a/config.yaml").write_text(yaml.safe_dump(header["config"]))


WHERE = pytest.mark.parametrize("where", ["config.json", "config.yaml"])
TARGETS = ("os.system", "torch.load", "ddpm.data.codec.Path", "ddpm.training.checkpoint.os.system")


@WHERE
@pytest.mark.parametrize(
    ("group", "target"),
    [
        *(("model", target) for target in TARGETS),
        *(
            (group, "os.system")
            for group in ("data", "schedule", "objective", "trainer", "sampler")
        ),
    ],
)
def test_a_class_outside_the_exports_is_not_built(run, where, group, target):
    change(where, group, "_target_", target)
    ended = run("train", *ON)
    remedy = "for a class of your own, my_module.MyClass, add plugins=[my_module]"
    if target.startswith("ddpm."):
        remedy = f"choose one with {group}=..."
    problem = "is not exported by ddpm or by a plugin"
    assert (ended.status, ended.line) == (
        1,
        f"ddpm-train: {group}._target_={target}: {problem}; {remedy}",
    )


@WHERE
@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${name}", "${now:%Y}"])
def test_interpolations_are_literal_text(run, where, text):
    change(where, "data", "path", text)
    Path("imgs").rename("elsewhere")  # the path as typed would be tried next
    ended = run("train", *ON)
    remedy = "no such folder; set data.path to a folder of images"
    assert (ended.status, ended.line) == (1, f"ddpm-train: data.path={text}: {remedy}")
    Path("elsewhere").rename(text)
    ended = run("train", *ON)
    assert ended.status == 0, ended.err
    place = str(Path(text).absolute())
    assert yaml.safe_load(Path("outputs/a/config.yaml").read_text())["data"]["path"] == place
    newest = checkpoint.newest(Path("outputs/a"), pytest.fail)
    assert newest is not None and newest.step == 3
    assert newest.config["data"]["path"] == place


# sizes

DEEP = b"[" * 200_000
LONG = 100_000_000


def tensors(size):
    """Return a safetensors file with a header of ``size`` bytes that lists empty tensors."""
    one = '"%08x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    count = size // (len(one % 0) + 1)
    header = ("{" + ",".join(one % number for number in range(count)) + "}").encode()
    return struct.pack("<Q", len(header)) + header


def note(size):
    """Return a safetensors file whose header is a text of ``size`` bytes."""
    header = b'{"__metadata__":{"a":"' + b"x" * size + b'"}}'
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize("length", [0, LONG, 2**64 - 1])
def test_a_header_that_claims_a_length(run, length):
    forge("ema.safetensors", struct.pack("<Q", length) + b"{}")
    ended = run("sample", *DRAW)
    reason = damaged("ema.safetensors cannot be read")
    assert (ended.status, ended.line) == (1, f"ddpm-sample: {reason}")
    ended = run("train", *ON)
    assert (ended.status, ended.line) == (1, f"ddpm-train: {reason}")


@pytest.mark.slow  # writes and hashes them
@pytest.mark.parametrize("content", [tensors, note])
def test_a_header_of_a_hundred_megabytes_costs_neither_time_nor_memory(good, tmp_path, content):
    """A command needs about as much time and memory as with a good checkpoint."""
    place = tmp_path / "copy"
    shutil.copytree(good, place, symlinks=True)
    usual = used(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        forge("ema.safetensors", content(99_000_000))
    status, message, seconds, memory = used(place)
    reason = damaged("ema.safetensors cannot be read")
    assert (status, message) == (1, f"ddpm-sample: {reason}\n")
    assert seconds < usual[2] + 5 and memory < usual[3] + 300e6


def used(place):
    """Return exit status, error message, CPU seconds and memory in bytes of a command."""
    with open(place / "stderr", "w") as stderr:
        started = subprocess.Popen(
            [sys.executable, "-m", "ddpm.cli.sample", *DRAW],
            env={**os.environ, "PYTHONPATH": ROOT},
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        _, status, usage = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
    seconds = usage.ru_utime + usage.ru_stime
    unit = 1 if sys.platform == "darwin" else 1024
    return started.returncode, (place / "stderr").read_text(), seconds, usage.ru_maxrss * unit


@pytest.mark.parametrize("content", [DEEP, b'{"a":' * 200_000, b"9" * 200_000, b"\xff\xfe"])
def test_json_that_cannot_be_read(run, content):
    forge("config.json", content)
    line = damaged("config.json cannot be read")
    assert run("sample", *DRAW).line == f"ddpm-sample: {line}"
    Path(STEP, "manifest.json").write_bytes(content)
    line = damaged("its manifest.json cannot be read")
    assert run("sample", *DRAW).line == f"ddpm-sample: {line}"
    assert run("train", *ON).line == f"ddpm-train: {line}"


@pytest.mark.slow  # many commands
@pytest.mark.parametrize("value", [None, 5, -1, "x", [], {}, [["x"]]], ids=str)
@pytest.mark.parametrize("key", ["config", "shape", "codec", "num_classes"])
def test_a_header_of_other_things_ends_in_a_line(run, key, value):
    header = json.loads(Path(STEP, "config.json").read_text())
    header[key] = value if value != header[key] else 7.5
    forge("config.json", json.dumps(header).encode())
    ended = run("sample", *DRAW)
    assert ended.status == 1
    assert ended.line.startswith("ddpm-sample: ")
