"""Start of a command: one composition, and no import of large libraries that it does not use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from ddpm.cli.argument_errors import check_names

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
        f"import sys, gc; sys.argv = ['x', *{options}]; from ddpm.cli import train; train.main(); "
        f"print([m for m in {UNUSED} if m in sys.modules], gc.isenabled(), gc.get_freeze_count())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *loaded, collects, frozen = ended.stdout.splitlines()[-1].split()
    assert loaded == ["[]"] and collects == "True"
    assert int(frozen) > 100_000  # objects of torch, which the collector passes over


def test_unknown_options_are_reported_without_hydra(tmp_path):
    errors = {
        "train trainer.lrr=1": "trainer.lrr=1: unknown option; did you mean 'trainer.lr'?",
        "train sede=1 trainer.lr=abc": "sede=1: unknown option; did you mean 'seed'?",
        "train data=digits data.path=x": "data.path=x: unknown option",
        "train model=iddpm_unet model.dim=3": "model.dim=3: unknown option",
        "train experiment=mnist batch_size=5": "batch_size=5: unknown option; use trainer.batch",
        "sample ckpt=x model.dim=3": "model.dim=3: the model comes from the checkpoint",
        "evaluate ckpt=x num_imagez=3": "num_imagez=3: unknown option; did you mean 'num_images'?",
        "import source=x files=3": "files=3: unknown option; did you mean 'file'?",
    }
    assert started(errors, tmp_path, ("torch", "hydra", "omegaconf", "tqdm")) == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        "trainer.lr=1 seed=3 init.ckpt=a launch.processes=2",
        "data=folder data.path=x data.flip=true evaluation.sampler.steps=3 evaluation.extractor={}",
        "resume=a model.other=1",
        "init=a trainer.other=1",
        "data._target_=mine.Own data.other=1",
        "hydra.job.name=a",
        "+trainer.other=1 trainer.others=1",
        "++other=1 others=1",
        "~trainer others=1",
        "-m others=1,2",
        "--config-dir mine others=1",
        "sampler@evaluation.sampler=ddim evaluation.sampler.eta=1 others=1",
        "data=mine data.other=1",
        "data=null data.other=1",
        "for_data=cifar",
    ],
)
def test_what_may_exist_is_left_to_hydra(arguments):
    check_names("train", arguments.split())


def test_errors_of_options_and_paths_are_reported_without_torch(tmp_path):
    errors = {
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
    assert started(errors, tmp_path, (*UNUSED, "torch")) == "[]"


def started(errors, folder, modules):
    """Run commands in one process; check their errors, and return which modules are imported."""
    code = f"""
import importlib, sys
for line in {list(errors)}:
    command, *sys.argv[1:] = line.split()
    module = {{"import": "importing", "export": "exporting"}}.get(command, command)
    try:
        importlib.import_module(f"ddpm.cli.{{module}}").main()
    except SystemExit as end:
        assert end.code == 1, line
print([m for m in {modules} if m in sys.modules])
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = ended.stderr.splitlines()
    assert len(lines) == len(errors), ended.stderr
    for line, (arguments, error) in zip(lines, errors.items(), strict=True):
        assert line.startswith(f"ddpm-{arguments.split()[0]}: {error}"), line
    return ended.stdout.splitlines()[-1]


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
