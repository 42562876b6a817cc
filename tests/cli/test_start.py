"""Start of a training: no import of large libraries that it does not use."""

import subprocess
import sys

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
