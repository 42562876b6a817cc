"""Options of the objective that are measured from the training data, in runs."""

import json
from pathlib import Path

import yaml

import ddpm
from ddpm.data import Digits
from ddpm.data.statistics import standard_deviation

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
    assert config["timesteps"]["_target_"] == "ddpm.diffusion.LogNormal"
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
        "systems do not support; use format=safetensors"
    )
