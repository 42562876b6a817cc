"""Experiment trackers: the real TensorBoard, and fake packages for the others."""

import io
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as TensorAccumulator,
)

from ddpm.errors import ConfigError
from ddpm.training import trackers as module
from ddpm.training.trackers import Trackers

CONFIG = {"seed": 0, "trainer": {"lr": 2e-4, "adam_betas": [0.9, 0.999], "clip": None}}
FLAT = {"seed": 0, "trainer.lr": 2e-4, "trainer.adam_betas": [0.9, 0.999], "trainer.clip": None}

# Records every call; the call named by FAILS_AT in the environment raises.
FAKE = """
import os
calls, config = [], None

def call(name, *args):
    calls.append((name, *args))
    if os.environ.get("FAILS_AT") == name:
        raise RuntimeError(f"{name} went\\n wrong")

class Image:
    def __init__(self, image):
        self.image = image

class Config:
    def update(self, values, allow_val_change):
        call("config", values, allow_val_change)

class Run:
    starting_step = _next_step = int(os.environ.get("LOGGED_THERE", "0"))

    def log(self, values, step):
        if any(isinstance(value, (Image, list)) for value in values.values()):
            call("picture", values, step)
        else:
            call("log", values, step)

    def finish(self):
        call("finish")

def init(**options):
    global config
    config = Config()
    call("init", options)
    return Run()
"""


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "600")  # would be set by the tracker, and remain
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a function that creates and imports a fake package."""
    place = tmp_path / "packages"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))

    def make(name):
        (place / f"{name}.py").write_text(FAKE)
        monkeypatch.delitem(sys.modules, name, raising=False)
        imported = __import__(name)
        monkeypatch.setitem(sys.modules, name, imported)  # removed after the test
        return imported

    return make


@pytest.fixture
def start(tmp_path):
    """Return a function that starts trackers, and returns them with the list of their warnings."""
    folder = tmp_path / "outputs/my run"
    folder.mkdir(parents=True)

    def begin(*names, step=0, main=True, config=CONFIG):
        warned = []
        trackers = Trackers(names)
        trackers.start(
            project="ddpm",
            run="my run",
            folder=folder,
            config=config,
            step=step,
            main=main,
            warn=warned.append,
        )
        return trackers, warned

    begin.folder = folder
    return begin


def next_second():
    """Wait for the next second: event files are read in the order of the seconds in their names."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.01)


def scalars(folder):
    """Return the reader of the event files of a run, and ``{tag: [(step, value), ...]}``."""
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    read.Reload()
    tags = read.Tags()["scalars"]
    return read, {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in tags}


def picture(size=(9, 7)):
    width, height = size
    pixels = np.arange(width * height, dtype=np.uint8).reshape(height, width)
    return Image.fromarray(pixels)


def test_unknown_name_is_rejected():
    with pytest.raises(ConfigError) as caught:
        Trackers(["tensorbord"])
    assert str(caught.value.under("trainer")) == (
        "trainer.trackers=[tensorbord]: unknown tracker tensorbord; did you mean "
        "'tensorboard'? (there are: aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, "
        "trackio, wandb)"
    )
    with pytest.raises(ConfigError) as caught:
        Trackers(("tensorboard", "x"))
    assert str(caught.value).startswith("trackers=[tensorboard,x]: unknown tracker x (there are: ")


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("tensorboard", "pip install 'ddpm[tensorboard]'"),
        ("wandb", "pip install wandb"),
        ("trackio", "pip install trackio"),
    ],
)
def test_missing_package_is_rejected(name, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ConfigError) as caught:
        Trackers([name])
    assert str(caught.value.under("trainer")) == (
        f"trainer.trackers=[{name}]: the package {name} is not installed; {remedy}"
    )


def test_folder_with_the_name_of_a_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # wandb creates such folders in the working directory
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="the package wandb is not installed"):
        Trackers(["wandb"])


def test_tensorboard_has_the_numbers(start):
    trackers, warned = start("tensorboard", "tensorboard")
    trackers.log({"step": 2, "loss": 0.5, "samples": 16, "loss_q0": None}, step=2)
    trackers.log({"step": 4, "loss": 0.25, "samples": 32, "loss_q0": 0.125}, step=4)
    trackers.finish()
    read, logged = scalars(start.folder)
    assert logged == {
        "loss": [(2, 0.5), (4, 0.25)],
        "samples": [(2, 16.0), (4, 32.0)],
        "loss_q0": [(4, 0.125)],
    }
    (text,) = read.Tensors("config/text_summary")
    assert text.step == 1
    assert text.tensor_proto.string_val[0].decode() == (
        "    seed=0\n    trainer.lr=0.0002\n    trainer.adam_betas=[0.9,0.999]\n"
        "    trainer.clip=null"
    )
    (file,) = (path for path in start.folder.rglob("*") if path.is_file())
    assert file.parent == start.folder / "tensorboard"
    assert warned == []


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_tensorboard_has_the_pictures(start, mode):
    drawn = picture().convert(mode)
    trackers, warned = start("tensorboard")
    trackers.picture("samples", drawn, step=3)
    read, _ = scalars(start.folder)  # before finish(): a killed run has it too
    (image,) = read.Images("samples")
    assert (image.step, image.width, image.height) == (3, 9, 7)
    shown = Image.open(io.BytesIO(image.encoded_image_string))
    assert np.array_equal(np.asarray(shown), np.asarray(drawn.convert("RGB")))
    trackers.finish()
    assert warned == []


@pytest.mark.parametrize("resumed_at", [0, 2])
def test_tensorboard_does_not_repeat_steps_after_resuming(start, resumed_at):
    """The run was killed at step 4 and is resumed, with another learning rate."""
    trackers, _ = start("tensorboard")
    for step in (1, 2, 3, 4):
        trackers.log({"loss": float(step)}, step=step)
    trackers.picture("samples", picture(), step=4)
    next_second()
    changed = {"trainer": {"lr": 0.5}}
    trackers, warned = start("tensorboard", step=resumed_at, config=changed)
    for step in range(resumed_at + 1, 6):
        trackers.log({"loss": 10.0 * step}, step=step)
    trackers.picture("samples", picture((5, 3)), step=4)
    trackers.finish()
    read, logged = scalars(start.folder)
    before = [(step, float(step)) for step in range(1, resumed_at + 1)]
    assert logged == {"loss": before + [(step, 10.0 * step) for step in range(resumed_at + 1, 6)]}
    assert [(e.step, e.width) for e in read.Images("samples")] == [(4, 5)]
    texts = TensorAccumulator(str(start.folder / "tensorboard"))
    texts.Reload()
    logged = [(e.step, e.tensor_proto.string_val[0]) for e in texts.Tensors("config/text_summary")]
    assert logged[-1] == (resumed_at + 1, b"    trainer.lr=0.5")
    assert [step for step, _ in logged] == ([1] if resumed_at == 0 else [1, 3])
    assert warned == []


def test_wandb_continues_the_same_run(start, fake, monkeypatch):
    wandb = fake("wandb")
    monkeypatch.delenv("WANDB_FINISH_TIMEOUT")
    trackers, warned = start("wandb")
    run_id = (start.folder / "wandb-id").read_text().strip()
    assert len(run_id) == 16 and int(run_id, 16) >= 0
    options = {
        "project": "ddpm",
        "name": "my run",
        "id": run_id,
        "resume": "allow",
        "dir": str(start.folder),
    }
    assert wandb.calls == [("init", options), ("config", FLAT, True)]
    assert os.environ["WANDB_FINISH_TIMEOUT"] == "600"
    trackers.log({"step": 2, "loss": 0.5, "loss_q0": None}, step=2)
    drawn = picture()
    trackers.picture("samples", drawn, step=2)
    trackers.finish()
    logged, (what, pictures, step), ended = wandb.calls[2:]
    assert logged == ("log", {"loss": 0.5}, 2) and ended == ("finish",)
    assert (what, step) == ("picture", 2) and list(pictures) == ["samples"]
    (shown,) = pictures["samples"]
    assert np.array_equal(np.asarray(shown.image), np.asarray(drawn.convert("RGB")))

    wandb.calls.clear()
    start("wandb", step=2)
    assert wandb.calls[0] == ("init", options)
    (start.folder / "wandb-id").write_text("")  # cut short by a crash
    start("wandb")
    assert wandb.calls[2][1]["id"] not in ("", run_id)
    assert warned == []


def test_wandb_run_belongs_to_the_folder(start, fake):
    wandb = fake("wandb")
    start("wandb")
    (start.folder / "wandb-id").unlink()  # the folder was removed and its name used again
    start("wandb")
    first, second = (options["id"] for what, options, *_ in wandb.calls if what == "init")
    assert first != second


def test_trackio_continues_only_a_run_of_this_folder(start, fake):
    trackio = fake("trackio")
    trackers, warned = start("trackio")
    options = {"project": "ddpm", "name": "my run", "config": FLAT}
    assert trackio.calls == [("init", {**options, "resume": "never"})]
    trackers.log({"step": 2, "loss": 0.5, "loss_q0": None}, step=2)
    drawn = picture()
    trackers.picture("samples", drawn, step=2)
    trackers.finish()
    logged, (what, pictures, step), ended = trackio.calls[1:]
    assert logged == ("log", {"loss": 0.5}, 2) and ended == ("finish",)
    assert (what, step) == ("picture", 2) and list(pictures) == ["samples"]
    shown = pictures["samples"].image
    assert np.array_equal(np.asarray(shown), np.asarray(drawn.convert("RGB")))

    trackio.calls.clear()
    start("trackio", step=2)
    assert trackio.calls == [("init", {**options, "resume": "allow"})]
    assert warned == []


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_logged_steps_are_not_logged_again(start, fake, monkeypatch, name):
    monkeypatch.setenv("LOGGED_THERE", "5")  # steps up to 4 were logged
    imported = fake(name)
    (start.folder / f"{name}-id").write_text("known\n")
    trackers, warned = start(name, step=2)
    for step in (3, 4, 5):
        trackers.log({"loss": 0.5}, step=step)
        trackers.picture("samples", picture(), step=step)
    shown = [(what, rest[-1]) for what, *rest in imported.calls if what in ("log", "picture")]
    assert shown == [("log", 5), ("picture", 5)]
    assert warned == []


def test_trackers_cannot_read_stdin(start, fake, monkeypatch):
    wandb = fake("wandb")
    seen = []
    terminal = io.StringIO("1\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    original = wandb.init

    def init(**options):
        seen.append((sys.stdin.isatty(), sys.stdin.readline()))
        return original(**options)

    monkeypatch.setattr(wandb, "init", init)
    start("wandb")
    assert seen == [(False, "")] and sys.stdin is terminal
    monkeypatch.setenv("FAILS_AT", "init")
    start("wandb")
    assert len(seen) == 2 and sys.stdin is terminal


def test_only_the_main_process_logs(start, fake):
    calls = fake("wandb").calls
    trackers, warned = start("tensorboard", "wandb", main=False)
    trackers.log({"loss": 0.5}, step=1)
    trackers.picture("samples", picture(), step=1)
    trackers.finish()
    assert calls == [] and warned == [] and list(start.folder.iterdir()) == []


def test_without_trackers_nothing_is_logged(start):
    trackers, warned = start()
    trackers.log({"loss": 0.5}, step=1)
    trackers.picture("samples", picture(), step=1)
    trackers.finish()
    assert warned == [] and list(start.folder.iterdir()) == []


def test_nothing_is_logged_after_finish(start, fake):
    wandb = fake("wandb")
    trackers, warned = start("wandb")
    trackers.finish()
    trackers.finish()
    trackers.log({"loss": 0.5}, step=1)
    assert [call[0] for call in wandb.calls] == ["init", "config", "finish"]
    assert warned == []


FAULTS = {
    "init": ["init"],
    "config": ["init", "config"],
    "log": ["init", "config", "log"],
    "picture": ["init", "config", "log", "picture"],
    "finish": ["init", "config", *["log", "picture"] * 2, "finish"],
}


@pytest.mark.parametrize("where", FAULTS)
def test_failed_tracker_is_switched_off_and_the_others_continue(start, fake, monkeypatch, where):
    wandb, trackio = fake("wandb"), fake("trackio")
    monkeypatch.setenv("FAILS_AT", where)
    monkeypatch.setattr(trackio, "call", lambda *args: trackio.calls.append(args))
    trackers, warned = start("wandb", "tensorboard", "trackio")
    for step in (1, 2):
        trackers.log({"loss": step / 2}, step=step)
        trackers.picture("samples", picture(), step=step)
    trackers.finish()
    trackers.finish()
    assert warned == [f"the tracker wandb is switched off: RuntimeError: {where} went wrong"]
    assert [call[0] for call in wandb.calls] == FAULTS[where]
    assert [call[0] for call in trackio.calls] == ["init", *["log", "picture"] * 2, "finish"]
    read, logged = scalars(start.folder)
    assert logged == {"loss": [(1, 0.5), (2, 1.0)]} and len(read.Images("samples")) == 2


def test_warnings_name_the_trackers(start, fake, monkeypatch):
    fake("wandb"), fake("trackio")
    monkeypatch.setenv("FAILS_AT", "log")
    trackers, warned = start("wandb", "trackio")
    trackers.log({"loss": 0.5}, step=1)
    trackers.log({"loss": 0.5}, step=2)
    assert warned == [
        "the tracker wandb is switched off: RuntimeError: log went wrong",
        "the tracker trackio is switched off: RuntimeError: log went wrong",
    ]


def test_a_folder_that_cannot_be_written_switches_tensorboard_off(start):
    (start.folder / "tensorboard").write_text("a file")
    trackers, warned = start("tensorboard")
    trackers.log({"loss": 0.5}, step=1)
    trackers.finish()
    (line,) = warned
    assert line.startswith("the tracker tensorboard is switched off: FileExistsError: ")


def test_picture_that_cannot_be_written_switches_tensorboard_off(start):
    trackers, warned = start("tensorboard")
    shutil.rmtree(start.folder / "tensorboard")
    trackers.picture("samples", picture(), step=1)
    (line,) = warned
    assert line.startswith("the tracker tensorboard is switched off: FileNotFoundError: ")
    trackers.finish()
    assert len(warned) == 1


def test_package_that_cannot_be_imported_is_switched_off(start, tmp_path, monkeypatch, fake):
    fake("wandb")
    trackers = Trackers(["wandb"])
    monkeypatch.setitem(sys.modules, "wandb", None)  # installed, but cannot be imported
    warned = []
    trackers.start(
        project="ddpm",
        run="a",
        folder=start.folder,
        config={},
        step=0,
        main=True,
        warn=warned.append,
    )
    (line,) = warned
    assert line.startswith("the tracker wandb is switched off: ModuleNotFoundError: ")


FULL_DISK = """
import resource, sys
from pathlib import Path
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from ddpm.training.trackers import Trackers

PartialState(cpu=True)
trackers = Trackers(["tensorboard"])
trackers.start(project="ddpm", run="a", folder=Path(sys.argv[1]), config={}, step=0, main=True,
               warn=lambda line: print(line, flush=True))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
for step in range(1, 1001):
    trackers.log({"loss": 1.0, "grad_norm": 2.0}, step=step)
trackers.finish()
print("continued to step", step)
"""


def test_full_disk_switches_tensorboard_off_with_one_warning(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout.splitlines() == [
        "the tracker tensorboard is switched off: OSError: [Errno 27] File too large",
        "continued to step 1000",
    ]
    assert ended.stderr == "" and ended.returncode == 0


def test_only_the_writer_thread_of_tensorboard_is_silenced(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda error: seen.append(str(error.exc_value)))
    module._silence_writer_thread()
    first = threading.excepthook
    module._silence_writer_thread()
    assert threading.excepthook is first  # hooks must not be nested by the jobs of a sweep

    def fail():
        raise RuntimeError("another's")

    class Writer(threading.Thread):
        __module__ = "tensorboard.summary.writer.event_file_writer"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (threading.Thread, Writer):
            thread = kind(target=fail)
            thread.start()
            thread.join()
    assert seen == ["another's"] and capsys.readouterr().err == ""


@pytest.mark.parametrize("name", sorted(LOGGER_TYPE_TO_CLASS))
def test_the_trackers_of_accelerate_are_known_by_name(monkeypatch, name):
    monkeypatch.setattr(module, "_installed", lambda _: False)
    with pytest.raises(ConfigError, match=f"the package {name} is not installed; pip install"):
        Trackers([name])


@pytest.mark.parametrize("requires_folder", [False, True])
def test_other_trackers_receive_options_and_numbers(monkeypatch, tmp_path, requires_folder):
    calls = []

    class Tracker:
        requires_logging_directory = requires_folder

        def __init__(self, *arguments):
            calls.append(("new", *arguments))

        def start(self):
            calls.append(("start",))

        def store_init_configuration(self, values):
            calls.append(("config", values))

        def log(self, values, step):
            calls.append(("log", values, step))

        def finish(self):
            calls.append(("finish",))

    monkeypatch.setattr(module, "_installed", lambda _: True)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", Tracker)
    trackers, warned = Trackers(["mlflow"]), []
    names = {"project": "ddpm", "run": "a", "folder": tmp_path}
    trackers.start(**names, config=CONFIG, step=0, main=True, warn=warned.append)
    trackers.log({"step": 5, "loss": 0.5, "skipped": None}, 5)
    trackers.picture("samples", Image.new("L", (2, 2)), 5)
    trackers.finish()
    assert calls == [
        ("new", "ddpm", *([tmp_path] if requires_folder else [])),
        ("start",),
        ("config", {**FLAT, "run": "a"}),
        ("log", {"loss": 0.5}, 5),
        ("finish",),
    ]
    assert warned == []
