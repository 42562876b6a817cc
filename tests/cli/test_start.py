"""Start of a command: one composition, and no import of large libraries that it does not use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

ROOT = Path(__file__).parents[2]
UNUSED = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "sympy",
    "sklearn",
    "wandb",
)


def test_training_does_not_import_libraries_that_it_does_not_use(tmp_path):
    options = [
        f"out={tmp_path}",
        "device=cpu",
        "model.dim=8",
        "trainer.max_steps=2",
        "sampler.steps=1",
    ]
    code = (
        f"import sys; sys.argv = ['x', *{options}]; from ddpm.cli import train; train.main(); "
        f"print('loaded', [m for m in {UNUSED} if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "loaded []"


def test_errors_of_options_and_paths_are_reported_without_torch(tmp_path):
    errors = {
        "train trainer.lrr=1": "trainer.lrr=1: unknown option",
        "train trainer.lr=abc": "trainer.lr=abc: must be a number or null",
        "train model.dim_mults=wide": "model.dim_mults=wide: must be",
        "sample ckpt=nowhere": "ckpt=nowhere: run or checkpoint not found; train one first",
        "sample ckpt=nowhere num_samples=many": "num_samples=many: must be a whole number",
        "sample ckpt=nowhere steps=[few]": "steps=[few]: must be",
        "interpolate ckpt=file a=1 b=2": "ckpt=file: is a file; use the folder of a run",
        "evaluate ckpt=empty": "ckpt=empty: contains no checkpoint",
        "export ckpt=nowhere format=safetensors": "ckpt=nowhere: run or checkpoint not found",
        "average ckpt=nowhere sigma_rel=0.1": "ckpt=nowhere: run or checkpoint not found",
        "average ckpt=nowhere sigma_rel=wide": "sigma_rel=wide: must be",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    code = f"""
import importlib, sys
for line in {list(errors)}:
    command, *sys.argv[1:] = line.split()
    module = {{"export": "exporting"}}.get(command, command)
    try:
        importlib.import_module(f"ddpm.cli.{{module}}").main()
    except SystemExit as end:
        assert end.code == 1, line
print("loaded", [m for m in {(*UNUSED, "torch")} if m in sys.modules])
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = ended.stderr.splitlines()
    assert len(lines) == len(errors), ended.stderr
    for line, (arguments, error) in zip(lines, errors.items(), strict=True):
        assert line.startswith(f"ddpm-{arguments.split()[0]}: {error}"), line
    assert ended.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize(("options", "count"), [("", 1), ("hydra.mode=RUN", 2)])
def test_the_config_is_composed_once(command, monkeypatch, options, count):
    """Only options of Hydra's own can set its mode, for which it composes the config first."""
    load, calls = ConfigLoaderImpl.load_configuration, []

    def counted(self, *arguments, **named):
        calls.append(None)
        return load(self, *arguments, **named)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    assert command("train", "trainer.batch_size=x", *options.split()).status == 1
    assert len(calls) == count
