"""Start of a command: one composition, and no import of large libraries that it does not use."""

import subprocess
import sys

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

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
