"""Commands whose output streams are lost complete their work and return its status."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import TINY
from tests.faults.processes import ROOT, Shell, assert_as, reference, shell
from tests.test_streams import broken_pipe, closed_terminal, full_disk

__all__ = ["reference", "shell"]

LOST = (broken_pipe, full_disk, closed_terminal)
TWO = ("launch.processes=2", "trainer.max_steps=10")
WARNS = (  # a disk that is temporarily full
    "real = torch.save\n"
    "calls = []\n"
    "def save(state, path):\n"
    "    calls.append(path)\n"
    "    if len(calls) == 1:\n"
    "        raise OSError(28, 'No space left on device')\n"
    "    return real(state, path)\n"
    "torch.save = save\n"
)


def ended(shell: Shell, words, lost, **popen):
    """Return the exit status of a command whose output streams are lost."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    streams = {"stdin": subprocess.DEVNULL, "stdout": lost, "stderr": lost}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(
        command, cwd=shell.folder, env=environment, timeout=300, **streams, **popen
    )
    return done.returncode


def train(shell: Shell, *options: str) -> list[str]:
    if not (shell.folder / "hurt.py").exists():
        shell.heal()
    return ["ddpm.cli.train", "name=x", "plugins=[hurt]", *TINY, *options]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("lose", LOST, ids=lambda each: each.__name__)
def test_training(shell, reference, lose, processes):
    """Warnings are also written to the run folder."""
    shell.hurt(WARNS)
    options = ("trainer.checkpoint_every=5", "trainer.max_steps=10")
    with lose() as number:
        words = train(shell, *options, f"launch.processes={processes}")
        assert ended(shell, words, number, start_new_session=True) == 0
    assert_as(reference(processes), shell.run, 10)
    assert shell.good_steps() == [10]
    events = [json.loads(x) for x in (shell.run / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "warning", "done"]
    assert "No space left on device" in events[1]["message"]


@pytest.mark.slow
def test_the_reader_quits_while_two_processes_train(shell, reference):
    """The pipe breaks at some step, as with ``| head`` or a killed ``tee``."""
    read, write = os.pipe()
    shell.hurt("at_losses(lambda step, values: (time.sleep(0.3), values)[1])\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", *train(shell, *TWO)]
    started = subprocess.Popen(words, cwd=shell.folder, env=environment, stdout=write, stderr=write)
    os.close(write)
    text = b""
    while b"training to step" not in text:
        text += os.read(read, 1000) or pytest.fail(f"the run ended: {text}")
    os.close(read)
    assert started.wait(120) == 0
    assert_as(reference(2), shell.run, 10)


@pytest.mark.slow
@pytest.mark.parametrize("lose", LOST, ids=lambda each: each.__name__)
def test_exit_status_of_a_stop_and_of_an_error(shell, lose):
    kill = "lambda step, values: (step == 3 and os.kill(os.getpid(), signal.SIGTERM), values)[1]"
    shell.hurt(f"at_losses({kill})\n")
    with lose() as number:
        assert ended(shell, train(shell), number) == 75
        assert ended(shell, train(shell, "launch.processes=2", "name=y"), number) == 75
        assert shell.good_steps() == [3]
        assert ended(shell, train(shell, "trainer.max_steps=0"), number) == 1
        two = ("trainer.max_steps=0", "launch.processes=2")
        assert ended(shell, train(shell, *two), number) == 1


@pytest.mark.slow
def test_closed_terminal_stops_a_run(shell):
    """SIGHUP stops a run; with nohup only the terminal is lost."""
    hup = "lambda step, values: (step == 3 and os.kill(os.getpid(), signal.SIGHUP), values)[1]"
    shell.hurt(f"at_losses({hup})\n")
    with closed_terminal() as number:
        assert ended(shell, train(shell, "trainer.max_steps=5"), number) == 75

        def nohup():
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

        words = train(shell, "trainer.max_steps=5", "name=y")
        assert ended(shell, words, number, preexec_fn=nohup) == 0


@pytest.mark.slow
@pytest.mark.parametrize("lose", LOST, ids=lambda each: each.__name__)
def test_a_sweep(shell, lose):
    words = ["ddpm.cli.train", "-m", "name=s", "seed=0,1", "trainer.max_steps=2", *TINY]
    with lose() as number:
        assert ended(shell, words, number) == 0
    place = shell.folder / "outputs/multirun/s"
    assert (place / "sweep.csv").is_file()
    records = [json.loads((place / job / "job.json").read_text()) for job in "01"]
    assert [record["status"] for record in records] == ["done", "done"]


@pytest.mark.slow
@pytest.mark.parametrize("lose", LOST, ids=lambda each: each.__name__)
def test_the_other_commands(shell, reference, lose):
    ckpt = f"ckpt={reference(1)}"
    with lose() as number:
        for words, made in (
            (("sample", ckpt, "out=s", "steps=2", "num_samples=2"), "s/grid.png"),
            (("sample", ckpt, "out=p", "steps=2", "num_samples=2", "launch.processes=2"),
             "p/grid.png"),
            (("interpolate", ckpt, "out=i", "a=1", "b=2", "num_frames=2", "t=2"), "i/strip.png"),
            (("evaluate", ckpt, "out=e", "metrics=[loss]", "num_images=8"), "e/report.html"),
            (("exporting", ckpt, "out=w"), "w"),
        ):  # fmt: skip
            status = ended(shell, [f"ddpm.cli.{words[0]}", *words[1:]], number)
            assert status == 0, words
            assert (shell.folder / made).exists(), words


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
    ids=["ascii streams", "ascii locale"],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_name_that_the_streams_cannot_encode(shell, variables, processes):
    shell.environment = variables
    options = ("trainer.max_steps=2", f"launch.processes={processes}", *TINY)
    started = shell.start("name=naïve", *options)
    assert started.end() == 0, started.err
    assert (shell.folder / "outputs/naïve/checkpoints/step-00000002").is_dir()
    assert "results go to outputs/na" in started.out


@pytest.mark.parametrize("words", [("--help",), ("--cfg", "job")])
def test_head_causes_no_error(tmp_path, words):
    command = f"{sys.executable} -m ddpm.cli.train {' '.join(words)}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        ["bash", "-c", f'{command} | head -1; echo "${{PIPESTATUS[0]}}"'],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert shown.stdout.splitlines()[1:] == ["0"] and shown.stderr == ""
    assert not list(Path(tmp_path).iterdir())
