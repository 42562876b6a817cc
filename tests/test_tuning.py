"""Automatic choice of precision and compilation before network calls."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ddpm.arithmetic import Arithmetic
from ddpm.distributed import trials
from ddpm.errors import ConfigError
from ddpm.runs import tuning

CPU = torch.device("cpu")
ONE = [torch.ones(2)]


class Network(nn.Module):
    """Records its compilation."""

    def compile(self, **options):
        assert options == {"dynamic": False}
        self.__dict__["_compiled_call_impl"] = "compiled"


class Work:
    """Network calls with given durations and predictions, without and with a choice."""

    def __init__(self, chosen, calls=1000, seconds=(10.0, 5.0), values=(1.0, 1.0)):
        self.chosen, self.calls, self.durations, self.values = chosen, calls, seconds, values
        self.pipeline, self.measured = SimpleNamespace(device=CPU), 0

    def seconds(self, duration=1.0):
        self.measured += 1
        return self.durations[self.chosen()]

    def predictions(self):
        value = self.values[self.chosen()]
        if isinstance(value, Exception):
            raise value
        return [value * each for each in ONE]


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: stances.append(stance))
    stances = []
    model = SimpleNamespace(network=Network(), autocast=Arithmetic(CPU, "auto"))
    accelerator = SimpleNamespace(is_main_process=True, num_processes=1, device=CPU)
    return SimpleNamespace(model=model, accelerator=accelerator, stances=stances)


def tune(session, work, compile: tuning.Compile = False):
    tuning.choose_precision(session, lambda: work)
    tuning.choose_compilation(session, lambda: work, compile)


def compiled(session):
    return session.model.network._compiled_call_impl is not None


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, "bf16"),
        ({"seconds": (1.0, 0.96)}, "no"),
        ({"values": (1.0, 1.1)}, "no"),
        ({"values": (1.0, float("nan"))}, "no"),
        ({"calls": 99}, "no"),
    ],
)
def test_bf16_is_tried_on_processors_with_instructions_for_it(
    session, monkeypatch, capsys, options, chosen
):
    monkeypatch.setattr(tuning.devices, "has_bf16_instructions", lambda: True)
    arithmetic = session.model.autocast
    tune(session, Work(lambda: arithmetic.precision == "bf16", **options))
    assert arithmetic.precision == chosen
    line = f"precision: {chosen} (bf16: " if options.get("calls") is None else ""
    assert capsys.readouterr().out.startswith(line)


def test_nothing_is_tried_on_other_processors_and_beside_typed_options(session, monkeypatch):
    monkeypatch.setattr(tuning.devices, "has_bf16_instructions", lambda: False)
    tune(session, None)
    monkeypatch.setattr(tuning.devices, "has_bf16_instructions", lambda: True)
    session.model.autocast = Arithmetic(CPU, "no")
    tune(session, None)
    assert not compiled(session) and session.stances == []


@pytest.mark.parametrize(
    ("options", "chosen", "line"),
    [
        ({}, True, "compile: true (compiled: 5.0 s per call after 0 s against 10.0 s; predictions"),
        ({"seconds": (10.0, 9.9)}, False, "compile: false (compiled: 9.9 s"),
        ({"values": (1.0, 1.01)}, False, "compile: false (compiled: 5.0 s"),
        (
            {"values": (1.0, RuntimeError("no g++\n..."))},
            False,
            "compile: false (it fails: no g++)",
        ),
        ({"calls": 359}, False, None),
        ({"calls": 50, "seconds": (1000.0, 1.0)}, False, None),
    ],
)
def test_a_network_is_compiled_where_it_pays_back(session, capsys, options, chosen, line):
    session.model.autocast = Arithmetic(CPU, "no")
    tune(session, Work(lambda: compiled(session), **options), "auto")
    assert compiled(session) == chosen
    out = capsys.readouterr().out
    assert out.startswith(line) if line else out == ""
    if chosen:  # a smaller last batch runs without compilation
        assert session.stances == ["default", "eager_on_recompile"]


def test_no_process_compiles_if_one_of_them_cannot(session, capsys, monkeypatch):
    session.model.autocast = Arithmetic(CPU, "no")
    failures = [None, trials.Failure("it takes more than 5 min")]
    monkeypatch.setattr(trials, "gather", lambda *_: failures)
    tune(session, Work(lambda: compiled(session)), "auto")
    assert not compiled(session)
    assert capsys.readouterr().out == "compile: false (it takes more than 5 min)\n"


def test_compilation_on_request_is_not_measured_and_fails_in_one_line(session):
    session.model.autocast = Arithmetic(CPU, "no")
    work = Work(lambda: compiled(session), calls=1)
    tune(session, work, True)
    assert compiled(session) and work.measured == 0
    failing = Work(lambda: compiled(session), values=(1.0, RuntimeError("no compiler")))
    with pytest.raises(ConfigError, match=r"^compile=true: fails: no compiler; use compile=false"):
        tune(session, failing, True)
    assert not compiled(session)
