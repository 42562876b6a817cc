"""Runs that an earlier version wrote are resumed as by that version.

``stored_runs`` has runs of four steps made at commit 1a06e83 on one CPU thread, without what came
after their checkpoint of step 2 except the weights of step 4.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

RUNS = Path(__file__).parent / "stored_runs"


def write_data() -> None:
    """Write the data of the runs to the current folder."""
    generator = np.random.default_rng(0)
    generator.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)  # images that are not stored here
    np.save("waves.npy", generator.standard_normal((12, 2, 16)).astype(np.float32))
    np.savez("videos.npz", samples=generator.integers(0, 256, (6, 1, 4, 8, 8), dtype=np.uint8))


@pytest.mark.parametrize("name", ["unet", "unet1d", "unet3d"])
def test_a_run_of_an_earlier_version_is_resumed_to_the_same_weights(command, name):
    write_data()
    shutil.copytree(RUNS / name, f"outputs/{name}")
    ended = command("train", f"resume=outputs/{name}", "device=cpu")
    assert ended.status == 0, ended.err
    assert "training from step 2 to step 4" in ended.out
    weights = load_file(f"outputs/{name}/checkpoints/step-00000004/model.safetensors")
    expected = load_file(RUNS / name / "step-00000004-model.safetensors")
    assert weights.keys() == expected.keys()
    for key, value in expected.items():  # the last bits depend on the machine
        torch.testing.assert_close(weights[key], value, rtol=1e-5, atol=1e-6)
