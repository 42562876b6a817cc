"""Options that are measured when a run begins: of the objective, and of the arithmetic."""

import json
from pathlib import Path

import yaml

import ddpm
from ddpm.data import Digits
from ddpm.data.statistics import standard_deviation
from ddpm.training import automatic
from ddpm.training.automatic import Tried

EDM = ("objective=edm", "trainer.max_steps=1")


def test_the_number_is_stored_and_used_by_all_commands(command, tiny):
    ended = command("train", "name=e", *EDM, *tiny)
    assert ended.status == 0, ended.err
    std = standard_deviation(Digits())
    assert f"objective.sigma_data={std}" in ended.out
    run = Path("outputs/e")
    assert yaml.safe_load((run / "config.yaml").read_text())["objective"]["sigma_data"] == std
    (checkpoint,) = (run / "checkpoints").iterdir()
    config = json.loads((checkpoint / "config.json").read_text())["config"]
    assert config["objective"]["sigma_data"] == std
    assert config["timesteps"]["_target_"] == "ddpm.training.LogNormal"
    model = ddpm.load(run)
    assert model.denoiser.diffusion.objective.sigma_data == std
    assert model.sample(2, steps=2).data.shape == (2, 1, 8, 8)
    again = command("train", "name=e", *EDM, *tiny, "trainer.max_steps=2")
    assert again.status == 0, again.err
    resumed = command("train", "resume=outputs/e", "trainer.max_steps=3")
    assert resumed.status == 0, resumed.err
    other = command("train", "name=e", *EDM, *tiny, "objective.sigma_data=0.5")
    assert other.status == 1 and f"objective.sigma_data ({std} there, 0.5 here)" in other.line
    exported = command("export", f"ckpt={run}", "format=denoising-diffusion-pytorch", "out=o")
    assert exported.status == 1
    assert exported.line == (
        "ddpm-export: objective=EDM: changes the input or the time of the network, which other "
        "systems do not support; use format=safetensors, torch-export or onnx"
    )


def test_the_arithmetic_of_a_trial_is_stored_and_repeated(command, tiny, monkeypatch):
    trials = []

    def try_bf16(trainer, left, seconds):
        trials.append(("bf16", trainer.precision, left(1.0)))
        return Tried(True, 0.1, "precision: bf16 (of a trial)")

    def try_compiling(trainer, left, seconds):
        trials.append(("compile", trainer.precision, seconds))
        return Tried(False, 0.1, "compile: false (of a trial)")

    monkeypatch.setattr(automatic, "has_bf16_instructions", lambda: True)
    monkeypatch.setattr(automatic, "MIN_STEPS", 1)
    monkeypatch.setattr(automatic, "try_bf16", try_bf16)
    monkeypatch.setattr(automatic, "try_compiling", try_compiling)
    options = ("name=a", "trainer.compile=auto", *tiny)
    ended = command("train", *options, "trainer.max_steps=1", "device=cpu")
    assert ended.status == 0, ended.err
    assert "precision: bf16 (of a trial)\ncompile: false (of a trial)\n" in ended.out
    assert trials == [("bf16", "no", 1.0), ("compile", "bf16", 0.1)]
    stored = yaml.safe_load(Path("outputs/a/config.yaml").read_text())["trainer"]
    assert [stored[k] for k in ("precision", "compile", "channels_last")] == ["bf16", False, False]
    ended = command("train", *options, "trainer.max_steps=2", "device=cpu")
    assert ended.status == 0 and len(trials) == 2, ended.err
    other = command("train", *options, "trainer.precision=no", "trainer.max_steps=2")
    assert other.status == 1 and "trainer.precision (bf16 there, no here)" in other.line
