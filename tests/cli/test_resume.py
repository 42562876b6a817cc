"""Equality of resumed and uninterrupted runs, bit for bit on a CPU."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddpm.training import batch_loader, checkpoint

OTHER_SIGNALS = ["SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"]
HARD = (
    "data.class_cond=true",
    "diffusion.label_dropout=0.2",
    "diffusion.self_condition=true",
    "diffusion.offset_noise=0.1",
    "model.dropout=0.1",
    "trainer.accumulate=2",
    "trainer.lr_warmup=5",
    "trainer.lr_decay=constant",
    "trainer.posthoc_ema=[0.05,0.1]",
)


def last(run):
    newest = checkpoint.newest(Path(run), pytest.fail)
    assert newest is not None
    return newest


def assert_equal(one, other):
    for which in ("raw", "ema"):
        a, b = one.weights(which), other.weights(which)
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), (which, name)
    mine, theirs = one.state(), other.state()
    assert mine["ema"] == theirs["ema"] and mine["num_updates"] == theirs["num_updates"]
    for a, b in zip(mine["posthoc"], theirs["posthoc"], strict=True):
        assert all(torch.equal(a["weights"][key], b["weights"][key]) for key in a["weights"])
        assert a.keys() == b.keys() and a["updates"] == b["updates"] and a["start"] == b["start"]
    for a, b in zip(
        mine["optimizer"]["state"].values(), theirs["optimizer"]["state"].values(), strict=True
    ):
        assert all(torch.equal(a[key], b[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize(
    ("options", "again"),
    [
        (HARD, "resume=outputs/cut"),
        pytest.param((), "name=cut", marks=pytest.mark.slow),
        pytest.param((), "resume=outputs/cut", marks=pytest.mark.slow),
        pytest.param(HARD, "name=cut", marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_are_ten_and_ten(command, tiny, options, again):
    assert command("train", "name=whole", "trainer.max_steps=20", *tiny, *options).status == 0
    assert command("train", "name=cut", "trainer.max_steps=10", *tiny, *options).status == 0
    typed = () if again.startswith("resume") else (*tiny, *options)
    ended = command("train", again, "trainer.max_steps=20", *typed)
    assert ended.status == 0, ended.err
    assert "from step 10 to step 20" in ended.out
    assert last("outputs/whole").step == last("outputs/cut").step == 20
    assert_equal(last("outputs/whole"), last("outputs/cut"))
    written = [
        {path.name: path.read_bytes() for path in Path("outputs", name).glob("snapshots/*")}
        for name in ("whole", "cut")
    ]
    assert written[0] == written[1] and len(written[0]) == (20 if options else 0)
    whole, cut = (
        [
            {k: v for k, v in json.loads(line).items() if k != "samples_per_second"}
            for line in Path(f"outputs/{name}/metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "cut")
    )
    assert whole == cut and [record["step"] for record in cut] == list(range(1, 21))


@pytest.mark.slow
def test_the_number_of_workers_changes_no_bit(command, tiny, monkeypatch):
    """Workers fill the disk cache; the resumed run finds it full and starts none."""
    Path("imgs").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(f"imgs/{number}.png")
        os.utime(f"imgs/{number}.png", (1.6e9, 1.6e9))
    started, loader = [], batch_loader.DataLoader
    monkeypatch.setattr(
        batch_loader,
        "DataLoader",
        lambda *a, **k: started.append(k["num_workers"]) or loader(*a, **k),
    )
    options = ("data=folder", "data.path=imgs", "data.flip=true", "data.cache_mb=0", *tiny)
    whole = ("name=whole", "trainer.max_steps=4", "data.disk_cache=false")
    assert command("train", *whole, *options).status == 0
    assert set(started) == {2}
    started.clear()
    cut = ("name=cut", "data.disk_cache=cache", *options)
    assert command("train", *cut, "trainer.max_steps=2").status == 0  # 16 of 12 pictures
    assert set(started) == {2}
    started.clear()
    ended = command("train", *cut, "trainer.max_steps=4")
    assert ended.status == 0 and "from step 2 to step 4" in ended.out, ended.err
    assert started == []
    assert_equal(last("outputs/whole"), last("outputs/cut"))
    stored = yaml.safe_load(Path("outputs/cut/config.yaml").read_text())
    assert stored["trainer"]["num_workers"] is None


def test_the_seed_matters(command, tiny):
    for seed in (0, 1):
        options = (f"name=s{seed}", f"seed={seed}", "trainer.max_steps=2", *tiny)
        assert command("train", *options).status == 0
    a, b = (last(f"outputs/s{seed}").weights("raw") for seed in (0, 1))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_a_damaged_checkpoint_is_skipped(command, tiny):
    options = ("name=a", "trainer.checkpoint_every=2", *tiny)
    assert command("train", "trainer.max_steps=4", *options).status == 0
    weights = Path("outputs/a/checkpoints/step-00000004/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    ended = command("train", "trainer.max_steps=6", *options)
    assert ended.status == 0
    assert "from step 2 to step 6" in ended.out
    assert "model.safetensors is not what was written" in ended.err
    assert command("train", "name=b", "trainer.max_steps=6", *options[1:]).status == 0
    assert_equal(last("outputs/a"), last("outputs/b"))


def test_a_run_without_intact_checkpoints_does_not_restart(command, trained):
    Path(trained, "checkpoints/step-00000002/manifest.json").write_text("{")
    ended = command("train", f"resume={trained}", "trainer.max_steps=4")
    assert ended.status == 1
    assert "is damaged: its manifest.json cannot be read" in ended.line


def test_a_finished_run_is_reported(command, trained):
    ended = command("train", f"resume={trained}")
    assert ended.status == 0
    assert "is done: 2 steps" in ended.out


def test_options_newer_than_a_run_are_not_changes(command, trained):
    """An evaluation of earlier versions had no options for folders."""
    file = Path(trained, "config.yaml")
    config = yaml.safe_load(file.read_text())
    for name in ("image_size", "color", "low", "high"):
        del config["evaluation"][name]
    file.write_text(yaml.safe_dump(config))
    ended = command("train", f"resume={trained}", "trainer.max_steps=3")
    assert ended.status == 0, ended.err
    changed = [line for line in ended.out.splitlines() if "from now on" in line]
    assert changed == ["trainer.max_steps: 2 until step 2, from now on 3"]


def test_different_options_are_rejected_by_name(command, trained):
    ended = command("train", f"resume={trained}", "trainer.lr=0.5", "schedule=linear", "seed=3")
    assert ended.status == 1
    for part in (
        "resume=outputs/tiny: was trained with different options: ",
        "schedule._target_ (ddpm.diffusion.cosine there, ddpm.diffusion.linear here)",
        "seed (0 there, 3 here)",
        "trainer.lr (0.001 there, 0.5 here)",
    ):
        assert part in ended.line


def waves(path, channels=1, scale=1.0):
    phase = np.random.default_rng(0).uniform(0, 6, (12, channels, 1))
    np.save(path, (scale * np.sin(phase + np.arange(16) / 2)).astype(np.float32))


SEQUENCES = ("data=sequence", "model=unet1d", "model.dim_mults=[1,2]", "name=w")


def test_a_moved_data_set_needs_only_its_path(command, tiny):
    waves("a.npy")
    options = ("data.path=a.npy", "trainer.max_steps=2", *SEQUENCES, *tiny)
    assert command("train", *options).status == 0
    Path("a.npy").rename("b.npy")
    ended = command("train", "resume=outputs/w", "data.path=b.npy", "trainer.max_steps=4")
    assert ended.status == 0, ended.err
    assert last("outputs/w").config["data"]["path"] == str(Path("b.npy").resolve())
    ended = command("train", "resume=outputs/w", "data.pat=b.npy")
    assert ended.line == ("ddpm-train: data.pat=b.npy: unknown option; did you mean 'data.path'?")


def test_different_data_are_rejected(command, tiny):
    waves("a.npy")
    options = ("data.path=a.npy", "trainer.max_steps=2", *SEQUENCES, *tiny)
    assert command("train", *options).status == 0
    for change, difference in (
        ({"scale": 10.0}, "data.codec.high (0."),
        ({"channels": 2}, "data.shape ([1,16] there, [2,16] here)"),
    ):
        waves("b.npy", **change)
        ended = command("train", "resume=outputs/w", "data.path=b.npy", "trainer.max_steps=4")
        assert ended.status == 1
        assert ended.line.startswith(
            "ddpm-train: resume=outputs/w: was trained with different options: "
        )
        assert difference in ended.line
        advice = "; init=outputs/w without resume= starts a new run from its weights"
        assert ended.line.endswith(advice)
    assert last("outputs/w").step == 2


def test_cosine_decay_to_another_end_warns(command, tiny):
    options = ("name=c", "trainer.lr_decay=cosine", *tiny)
    assert command("train", "trainer.max_steps=2", *options).status == 0
    ended = command("train", "trainer.max_steps=3", *options)
    assert ended.status == 0 and "with another value the run is a different one" in ended.err


@pytest.mark.parametrize(
    "name",
    ["SIGTERM", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHER_SIGNALS)],
)
def test_a_signal_stops_with_a_checkpoint_and_the_run_resumes(command, tiny, monkeypatch, name):
    from ddpm.training import Trainer

    losses, calls = Trainer._losses, []

    def signalled(self, *arguments):
        calls.append(None)
        if len(calls) == 5:
            os.kill(os.getpid(), getattr(signal, name))
        return losses(self, *arguments)

    options = ("trainer.max_steps=9", "trainer.checkpoint_every=3", *tiny)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_losses", signalled)
        ended = command("train", "name=i", *options)
    assert ended.status == 75
    folder = "outputs/i/checkpoints/step-00000005"
    message = f"stopped at step 5, with a checkpoint in {folder}"
    message = f"ddpm-train: {message}; to resume: ddpm-train resume=outputs/i"
    assert ended.err.strip().splitlines()[-1] == message
    ended = command("train", "resume=outputs/i")
    assert ended.status == 0 and "from step 5 to step 9" in ended.out
    assert command("train", "name=whole", *options).status == 0
    assert_equal(last("outputs/whole"), last("outputs/i"))
    events = [json.loads(line) for line in Path("outputs/i/events.jsonl").read_text().splitlines()]
    assert [(e["event"], e["step"]) for e in events] == [
        ("started", 0), ("stopped", 5), ("resumed", 5), ("done", 9)
    ]  # fmt: skip


def test_a_checkpoint_of_another_config_in_the_folder_is_rejected(command, tiny):
    """The config in the checkpoint counts, not config.yaml."""
    assert command("train", "name=a", "trainer.max_steps=2", *tiny).status == 0
    options = ("trainer.max_steps=3", "objective=pred_noise", "seed=7", "trainer.lr=0.5")
    assert command("train", "name=b", *tiny, *options).status == 0
    Path("outputs/b/checkpoints/step-00000003").rename("outputs/a/checkpoints/step-00000003")
    ended = command("train", "resume=outputs/a", "trainer.max_steps=4")
    assert ended.status == 1
    for part in ("objective._target_ (ddpm.diffusion.PredNoise there", "seed (7 there, 0 here)"):
        assert part in ended.line


@pytest.mark.parametrize(
    "resume", ["name=a", pytest.param("resume=outputs/a", marks=pytest.mark.slow)]
)
def test_a_new_learning_rate_requires_override_and_is_logged(command, tiny, resume):
    options = ("trainer.max_steps=2", *tiny) if resume.startswith("name") else ()
    assert command("train", "name=a", "trainer.max_steps=2", *tiny).status == 0
    options = (*options[1:], "trainer.lr=0.005", "trainer.max_steps=4")
    ended = command("train", resume, *options)
    assert ended.status == 1
    remedy = "remove these overrides, start a new run, or add override=true to use them"
    if resume.startswith("name"):
        remedy = "use resume=outputs/a override=true to continue with these, or another name"
    assert ended.line.endswith(
        f": was trained with different options: trainer.lr (0.001 there, 0.005 here); {remedy}"
    )
    ended = command("train", resume, "override=true", *options)
    assert ended.status == 0, ended.err
    assert "trainer.lr: 0.001 until step 2, from now on 0.005" in ended.out
    events = [json.loads(line) for line in Path("outputs/a/events.jsonl").read_text().splitlines()]
    assert events[2]["event"] == "resumed" and events[2]["changed"]["trainer.lr"] == [0.001, 0.005]
    metrics = Path("outputs/a/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["lr"] for line in metrics] == [0.001, 0.001, 0.005, 0.005]
    assert last("outputs/a").state()["optimizer"]["param_groups"][0]["lr"] == 0.005
    ended = command("train", "resume=outputs/a", "override=true", "schedule=linear")
    assert ended.status == 1 and ended.line.endswith("remove these overrides or start a new run")


def test_another_batch_size_continues_the_order_of_the_data(command, tiny):
    options = [o for o in tiny if "batch_size" not in o]
    begin = ("name=a", "trainer.max_steps=3", "trainer.batch_size=8")
    assert command("train", *begin, *options).status == 0
    more = ("override=true", "trainer.max_steps=5", "trainer.batch_size=16")
    assert command("train", "resume=outputs/a", *more).status == 0
    assert last("outputs/a").state()["samples"] == 3 * 8 + 2 * 16


def test_only_the_newest_checkpoints_are_kept(command, tiny):
    options = ("trainer.max_steps=10", "trainer.checkpoint_every=2", "trainer.keep_last=2")
    assert command("train", "name=a", *options, *tiny).status == 0
    assert [path.name for path in checkpoint.listed(Path("outputs/a"))] == [
        "step-00000010",
        "step-00000008",
    ]
