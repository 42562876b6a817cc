"""Classes under the names of earlier versions, in arguments and in YAML files of the user."""

from pathlib import Path

import yaml

from ddpm.cli.composition import compose
from ddpm.training.run import CONFIG


def test_typed_names_are_migrated():
    typed = {
        "timesteps": {"_target_": "ddpm.diffusion.Stratified"},
        "evaluation": {"extractor": {"_target_": "ddpm.fidelity.Pixels"}},
    }
    options = compose("train", typed).options
    assert options["timesteps"]["_target_"] == "ddpm.training.Stratified"
    assert options["evaluation"]["extractor"]["_target_"] == "ddpm.metrics.Pixels"
    assert options["schedule"]["_target_"] == "ddpm.diffusion.cosine"


def test_names_in_a_file_of_the_user_are_migrated(command, tiny):
    """The run stores the current name, and the same command continues it."""
    file = Path("mine/timesteps/own.yaml")
    file.parent.mkdir(parents=True)
    file.write_text("# Mine.\n_target_: ddpm.diffusion.LogitNormal\nmean: 0.5\nstd: 2.0\n")
    for steps in (1, 2):
        options = ("timesteps=own", "name=a", f"trainer.max_steps={steps}", *tiny)
        ended = command("train", "--config-dir", "mine", *options)
        assert ended.status == 0, ended.err
        stored = yaml.safe_load(Path("outputs/a", CONFIG).read_text())["timesteps"]
        assert stored == {"_target_": "ddpm.training.LogitNormal", "mean": 0.5, "std": 2.0}
    assert (Path("outputs/a/checkpoints") / "step-00000002").is_dir()
