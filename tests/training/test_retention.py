"""Retention of checkpoints."""

import json

import pytest

from ddpm.checkpoint_paths import step_of
from ddpm.training import checkpoint
from ddpm.training.retention import best_of, prune

LOSSES = {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.1, 5: 0.9, 6: None, 7: float("nan")}


def write_metadata(folder, step, metrics):
    metadata = checkpoint.CheckpointMetadata(config={}, step=step, metrics=metrics)
    (folder / checkpoint.CONFIG).write_text(json.dumps(metadata.to_json()))


@pytest.fixture
def run(tmp_path):
    for step, loss in LOSSES.items():
        folder = tmp_path / checkpoint.FOLDER / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_metadata(folder, step, None if loss is None else {"loss": loss})
    return tmp_path


def retained(run):
    return [step_of(folder) for folder in checkpoint.listed(run)]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [7, 6]),
        ({"keep_every": 3}, [7, 6, 3]),
        ({"keep_every": 1}, [7, 6, 5, 4, 3, 2, 1]),
        ({"best": "loss"}, [7, 6, 2]),  # the first of equals
        ({"best": "loss", "keep_every": 4}, [7, 6, 4, 2]),
        ({"best": "loss_q0"}, [7, 6]),  # no checkpoint has it
    ],
)
def test_retained_checkpoints(run, options, steps):
    for leftover in (".tmp-step-00000008-1", ".tmp-stale-step-00000003-2"):
        (run / checkpoint.FOLDER / leftover).mkdir()
    prune(run, 2, **options)
    assert retained(run) == steps
    names = {path.name for path in (run / checkpoint.FOLDER).iterdir()}
    linked = {"best"} if options.get("best") == "loss" else set()
    assert names == {f"step-{step:08d}" for step in steps} | linked
    if linked:
        assert (run / checkpoint.FOLDER / "best").resolve().name == "step-00000002"


def test_better_checkpoint_replaces_the_best(run):
    prune(run, 2, best="loss")
    folder = run / checkpoint.FOLDER / "step-00000008"
    folder.mkdir()
    write_metadata(folder, 8, {"loss": 0.05})
    prune(run, 2, best="loss")
    assert retained(run) == [8, 7]
    assert (run / checkpoint.FOLDER / "best").resolve() == folder.resolve()


@pytest.mark.parametrize(("higher", "best"), [(False, 3), (True, 5)])
def test_best_by_an_evaluated_metric(run, higher, best):
    for step, value in {3: 1.0, 4: 2.0, 5: 3.0}.items():
        row = {"name": "fid_9", "metric": "fid", "value": value, "higher_is_better": higher}
        content = json.dumps({"metrics": [row], "measure": {"steps": 2}})
        (run / checkpoint.FOLDER / f"step-{step:08d}" / "evaluation.json").write_text(content)
    for name in ("fid", "fid_9"):
        score = best_of(checkpoint.listed(run), name)
        assert (step_of(score.folder), score.value) == (
            best,
            {3: 1.0, 5: 3.0}[best],
        )
    assert best_of(checkpoint.listed(run), "kid") is None
    newest = run / checkpoint.FOLDER / "step-00000007" / "evaluation.json"
    row = {"name": "fid_9", "metric": "fid", "value": 2.5, "higher_is_better": higher}
    newest.write_text(json.dumps({"metrics": [row], "measure": {"steps": 9}}))
    assert best_of(checkpoint.listed(run), "fid").value == 2.5  # the only one with these options
    newest.write_text("{")  # damaged: it does not count
    assert step_of(best_of(checkpoint.listed(run), "fid").folder) == best


def test_failed_deletion_does_not_stop_the_others(run, monkeypatch):
    from ddpm.training import retention

    real = retention.shutil.rmtree

    def refuses(path, ignore_errors=False):
        assert ignore_errors, "an exception would end the training"
        if not path.name.endswith("5"):
            real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(retention.shutil, "rmtree", refuses)
    prune(run, 2)
    assert retained(run) == [7, 6]
    hidden = [path.name for path in (run / checkpoint.FOLDER).glob(".*")]
    assert hidden == [".tmp-old-step-00000005"], "it was renamed, and is deleted later"


def test_newer_damaged_checkpoints_do_not_replace_good_ones(run):
    """The run resumed from 3, since 4 to 7 are damaged, and has just written 5 again."""
    prune(run, 2, step=5)
    assert retained(run) == [7, 6, 5, 4]
    prune(run, 2, step=7)
    assert retained(run) == [7, 6]
