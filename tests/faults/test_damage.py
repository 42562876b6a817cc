"""Checkpoints that are damaged, or that another run has written."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from ddpm.training import checkpoint
from tests.cli.conftest import TINY
from tests.faults.processes import assert_as, reference

__all__ = ["reference"]

RUN = Path("outputs/x")
FILES = ("config.json", "ema.safetensors", "model.safetensors", "state.pt")


def truncate(share):
    def change(path):
        content = path.read_bytes()
        path.write_bytes(content[: share if isinstance(share, int) else int(len(content) * share)])

    return change


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


LENGTHS = {"nothing": 0, "a byte": 1, "a hundred": 100, "half": 0.5, "all but one": -1}
CHANGED = "{name} is not what was written"
UNREADABLE = "its manifest.json cannot be read"
DAMAGE = [
    *[(name, truncate(LENGTHS[length]), CHANGED, length) for name in FILES for length in LENGTHS],
    *[("manifest.json", truncate(LENGTHS[length]), UNREADABLE, length) for length in LENGTHS],
    *[(name, flip, CHANGED, "a bit") for name in FILES],
    *[(name, Path.unlink, "{name} is missing", "gone") for name in FILES],
    ("manifest.json", Path.unlink, "it has no manifest.json", "gone"),
]
# Each length and each file once; all pairs in the slow tests.
QUICK = {
    *zip((*FILES, "manifest.json"), LENGTHS, strict=True),
    ("state.pt", "a bit"),
    ("manifest.json", "gone"),
}
DAMAGED = [
    pytest.param(
        *(name, damage, reason),
        id=f"{name} {how}",
        marks=[] if (name, how) in QUICK else pytest.mark.slow,
    )
    for name, damage, reason, how in DAMAGE
]


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory, reference):
    """Return a run folder with checkpoints of the steps 10, 20 and 30."""
    place = tmp_path_factory.mktemp("steps")
    shutil.copytree(reference(1), place / "x")
    return place / "x"


@pytest.fixture
def again(three_checkpoints, command):
    """Return a function that resumes a copy of that run to step 30."""
    shutil.copytree(three_checkpoints, RUN)

    def run(*options):
        typed = ("trainer.max_steps=30", "trainer.keep_every=10", "name=x", *TINY, *options)
        return command("train", *typed)

    return run


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGED)
def test_damaged_newest_checkpoint_is_skipped(again, reference, name, damage, reason):
    newest = RUN / "checkpoints/step-00000030"
    damage(newest / name)
    ended = again()
    assert ended.status == 0
    warning = f"{newest}: is damaged: {reason.format(name=name)}; using the previous one"
    assert ended.err == f"warning: {warning}\n"
    assert "training from step 20 to step 30" in ended.out
    assert_as(reference(1), RUN, 30)


def test_empty_checkpoint_folder_is_skipped(again, reference):
    for step in (20, 30):
        shutil.rmtree(RUN / f"checkpoints/step-{step:08d}")
        (RUN / f"checkpoints/step-{step:08d}").mkdir()
    ended = again()
    assert ended.status == 0 and "training from step 10 to step 30" in ended.out
    assert ended.err.splitlines() == [
        f"warning: outputs/x/checkpoints/step-000000{step}: is damaged: it has no manifest.json; "
        "using the previous one"
        for step in (30, 20)
    ]
    assert_as(reference(1), RUN, 30)


def test_all_damaged_is_an_error_without_a_new_start(again):
    damages = (flip, truncate(0.5), Path.unlink)
    for folder, damage in zip(checkpoint.listed(RUN), damages, strict=True):
        damage(folder / "state.pt")
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    ended = again()
    assert ended.status == 1
    assert ended.line == (
        "ddpm-train: ckpt=outputs/x/checkpoints/step-00000010: is damaged: state.pt is missing; "
        "use another checkpoint"
    )
    after = {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.name != ".lock"}
    assert after.items() <= before.items() and len(after) >= len(before) - 1


def test_checkpoint_of_another_version_is_resumed_with_a_warning(again, reference):
    newest = RUN / "checkpoints/step-00000030"
    shutil.rmtree(newest)
    path = RUN / "checkpoints/step-00000020/config.json"
    content = json.dumps({**json.loads(path.read_text()), "ddpm": "0.0.7"}).encode()
    path.write_bytes(content)
    manifest = json.loads(path.with_name("manifest.json").read_text())
    manifest["files"]["config.json"] = {
        "bytes": len(content),
        "sha256": sha256(content).hexdigest(),
    }
    path.with_name("manifest.json").write_text(json.dumps(manifest))
    ended = again()
    assert ended.status == 0
    assert ended.err == f"warning: {path.parent} was written by ddpm 0.0.7, this is 0.1.0\n"
    assert_as(reference(1), RUN, 30)


def test_checkpoint_of_another_config_is_rejected_with_the_keys(again):
    ended = again("model.dropout=0.1", "trainer.batch_size=16", "seed=3")
    assert ended.status == 1
    assert ended.line == (
        "ddpm-train: name=x: was trained with different options: model.dropout (0.0 there, 0.1 "
        "here), seed (0 there, 3 here), trainer.batch_size (8 there, 16 here); use "
        "resume=outputs/x to continue with the run's own options, or another name"
    )
