"""Evaluation of runs and of images by the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ddpm.data import Digits
from ddpm.metrics import Pixels
from tests.metrics.torch_fidelity_reference import custom, pictures, reference_metrics

SMALL = (
    "extractor=pixels",
    "num_samples=12",
    "steps=3",
    "num_images=6",
    "bound_steps=3",
    "batch_size=5",
)


def content(folder):
    return json.loads(Path(folder, "evaluation.json").read_text())


def values(folder):
    return {row["name"]: row["value"] for row in content(folder)["metrics"]}


def digits(path, indices):
    data = Digits()
    raw = data.fetch(list(indices), [0] * len(indices))[0]
    np.savez(path, arr_0=raw.permute(0, 2, 3, 1).numpy())


def test_files_of_the_evaluation_of_a_run(command, trained):
    ended = command("evaluate", f"ckpt={trained}", "metrics=[fid,kid,prc,bpd,loss]", *SMALL)
    assert ended.status == 0, ended.err
    (folder,) = Path(trained, "evaluations").iterdir()
    names = {"evaluation.json", "report.html", "samples.png", "bound.npz", "bound.png"}
    assert {path.name for path in folder.iterdir()} == {*names, ".ddpm-files.json"}
    rows = {row["name"]: row for row in content(folder)["metrics"]}
    few = [f"{name}_12" for name in ("fid", "kid", "precision", "recall", "f_score")]
    assert list(rows) == [*few, "bpd_3steps", "loss", *(f"loss_q{q}" for q in range(4))]
    row = rows["fid_12"]
    for key, value in (
        ("num_samples", 12), ("steps", 3), ("weights", "ema"), ("guidance", 1.0), ("seed", 0),
        ("resize", "none"),
    ):  # fmt: skip
        assert row[key] == value
    assert row["reference"]["num_images"] == 1797 and len(row["reference"]["sha256"]) == 64
    assert row["extractor"]["name"] == "pixels" and row["extractor"]["features"] == 64
    assert row["sampler"]["_target_"] == "ddpm.samplers.UniPC" and row["checkpoint"].startswith(
        trained
    )
    bound = np.load(folder / "bound.npz")
    assert bound["bits"].sum() + bound["prior"] == pytest.approx(
        rows["bpd_3steps"]["value"], rel=1e-6
    )
    (line,) = [
        json.loads(text)
        for text in Path(trained, "metrics.jsonl").read_text().splitlines()
        if "evaluation" in text
    ]
    assert line["step"] == 2 and line["evaluation"]["fid_12"] == row["value"]
    quarters = [rows[f"loss_q{q}"]["value"] for q in range(4)]
    assert rows["loss"]["value"] == pytest.approx(sum(quarters) / 4)
    assert "fid_12" in (folder / "report.html").read_text()
    again = command("train", f"resume={trained}", "trainer.max_steps=4")
    assert again.status == 0, again.err


def test_evaluations_are_reproducible_and_cache_the_reference(command, trained):
    options = (f"ckpt={trained}", "metrics=[fid]", *SMALL)
    for out in ("a", "b"):
        assert command("evaluate", f"out={out}", *options).status == 0
    assert values("a") == values("b")
    (cached,) = Path("outputs/references").glob("*.safetensors")
    written = cached.stat().st_mtime_ns
    assert command("evaluate", "out=c", "batch_size=3", *options[:-1]).status == 0
    assert cached.stat().st_mtime_ns == written
    assert values("c")["fid_12"] == pytest.approx(values("a")["fid_12"], rel=1e-3)


def test_existing_images(command):
    digits("half.npz", range(0, 1797, 2))
    digits("other.npz", range(1, 1797, 2))
    options = ("samples=half.npz", "extractor=pixels")
    assert command("evaluate", "reference=other.npz", "out=halves", *options).status == 0
    assert command("evaluate", "reference=digits", "out=whole", *options).status == 0
    every = "metrics=[fid,kid,prc]"
    assert command("evaluate", "reference=half.npz", "out=same", every, *options).status == 0
    assert 0.05 < values("halves")["fid_899"] < 0.1 and values("whole")["fid_899"] < 0.04
    same = values("same")
    assert abs(same["fid_899"]) < 1e-3 and same["precision_899"] == same["recall_899"] == 1


def test_statistics_in_the_layout_of_pytorch_fid(command):
    digits("half.npz", range(0, 1797, 2))
    x = Digits().fetch(list(range(1797)), [0] * 1797)[0].flatten(1) / 255
    np.savez("stats.npz", mu=x.mean(0).double().numpy(), sigma=torch.cov(x.T.double()).numpy())
    options = ("samples=half.npz", "extractor=pixels", "metrics=[fid]")
    ended = command("evaluate", "reference=stats.npz", "out=a", *options)
    assert ended.status == 0 and "does not record its extractor" in ended.err
    assert command("evaluate", "reference=digits", "out=b", *options).status == 0
    assert values("a")["fid_899"] == pytest.approx(values("b")["fid_899"], abs=1e-3)


def test_the_inception_score_needs_no_reference(command):
    np.savez("s.npz", arr_0=pictures(40, 3, 6, 5).permute(0, 2, 3, 1).numpy())
    custom("net.pt", 3)
    options = ("samples=s.npz", "metrics=[isc]", "extractor=custom", "extractor.path=net.pt")
    ended = command("evaluate", "out=o", *options)
    assert ended.status == 0, ended.err
    (row,) = content("o")["metrics"]
    assert row["name"] == "isc_40" and row["extractor"]["name"] == "custom"
    assert row["samples"]["num_images"] == 40 and "reference" not in row


def test_a_random_subset_of_the_images_is_evaluated(command):
    """Folders are sorted by class: the first images would not be representative."""
    digits("half.npz", np.argsort(load_digits().target, kind="stable"))
    options = ("samples=half.npz", "extractor=pixels", "reference=digits", "metrics=[fid]")
    ended = command("evaluate", "num_samples=600", "out=o", *options)
    assert ended.status == 0, ended.err
    assert values("o")["fid_600"] < 0.1  # of the first 600 it is 1.9
    (row,) = content("o")["metrics"]
    assert row["samples"]["chosen_at_random_from"] == 1797
    assert row["samples"]["num_images"] == 600


def test_images_of_the_reference_have_nearest_neighbours_at_distance_0(command):
    digits("half.npz", range(0, 1797, 2))
    options = ("samples=half.npz", "extractor=pixels", "reference=digits", "metrics=[fid]")
    assert command("evaluate", "out=o", *options).status == 0
    page = Path("o/report.html").read_text()
    assert "Of 24 samples: smallest 0, median 0." in page
    assert "Nearest neighbours in reference=digits" in page


def mixed_folder():
    """Write pictures of several sizes, grey and in colour, and a file that is not a picture."""
    Path("mixed").mkdir()
    for number, size in enumerate([(9, 8), (8, 12), (16, 16), (8, 8)] * 3):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        image = Image.fromarray(pixels if number % 2 else pixels[:, :, 0])
        image.save(f"mixed/{number:02}.png")
    Path("mixed/a.heic").touch()


def test_folders_of_mixed_pictures_need_options_of_training(command, tiny):
    mixed_folder()
    options = ("samples=mixed", "reference=mixed", "extractor=pixels", "metrics=[fid]", "out=o")
    ended = command("evaluate", *options)
    assert ended.status == 1 and ended.line == (
        "ddpm-evaluate: samples=mixed: the images differ in size: 00.png is 8 wide and 9 high, "
        "01.png is 12 wide and 8 high; resize them to one size, such as image_size=8"
    )
    ended = command("evaluate", *options, "image_size=8")
    assert ended.status == 1 and ended.line == (
        "ddpm-evaluate: samples=mixed: 00.png is grey but 01.png is in colour; set color=rgb or "
        "color=grey"
    )
    ended = command("evaluate", *options, "image_size=8", "color=rgb")
    assert ended.status == 0, ended.err
    skipped = "warning: mixed: skipped 1 .heic; images are read from .jpg "
    assert [line[: len(skipped)] for line in ended.err.splitlines()][:2] == [skipped] * 2
    (row,) = content("o")["metrics"]
    for images in (row["samples"], row["reference"]):
        reading = {name: images[name] for name in ("image_size", "color", "resize", "shape")}
        assert reading == {
            "image_size": 8,
            "color": "rgb",
            "resize": "scaled to cover, then cut at the centre",
            "shape": [3, 8, 8],
        }
    ended = command(
        "train", "name=m", "trainer.evaluate_every=1", "evaluation.reference=mixed", *tiny
    )
    assert ended.status == 1 and ended.line == (
        "ddpm-train: evaluation.reference=mixed: the images differ in size: 00.png is 8 wide and 9 "
        "high, 01.png is 12 wide and 8 high; resize them to one size, such as "
        "evaluation.image_size=8"
    )
    measured = ("evaluation.image_size=8", "evaluation.color=grey", "evaluation.num_samples=4")
    ended = command(
        "train", "name=m", "trainer.max_steps=1", "trainer.evaluate_every=1",
        "evaluation.reference=mixed", "evaluation.sampler.steps=2", *measured, *tiny,
    )  # fmt: skip
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["pixels", "custom"])
def test_the_command_equals_torch_fidelity_exactly(command, name, processes):
    """On 210 and 190 images in batches of 32: two processes share them unevenly."""
    samples, real = pictures(210, 3, 6, 5), pictures(190, 3, 6, 5, seed=1, dark=20)
    for path, images in (("samples.npz", samples), ("real.npz", real)):
        np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy())
    options, more = ["extractor=pixels", "metrics=[fid,kid,prc]"], {}
    extractor = Pixels()
    if name == "custom":
        extractor = custom("net.pt", 3)
        options = ["extractor=custom", "extractor.path=net.pt", "metrics=[fid,kid,prc,isc]"]
        more = {"isc": True}
    ended = command(
        "evaluate", "samples=samples.npz", "reference=real.npz", "batch_size=32", "out=o",
        f"launch.processes={processes}", *options,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    expected = reference_metrics(
        extractor, samples, real, fid=True, kid=True, prc=True, kid_subset_size=190,
        batch_size=32, **more,
    )  # fmt: skip
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
        "f_score": "f_score",
        **({"isc": "inception_score_mean"} if more else {}),
    }
    assert values("o") == {f"{name}_210": expected[original] for name, original in names.items()}


ERRORS = [
    ("metrics=[fid]", "ckpt: set exactly one of ckpt= (a model), samples= (images) and runs= (several models)"),
    ("ckpt={run} metrics=[fidd]", "metrics=fidd: unknown metric; did you mean 'fid'?"),
    ("ckpt={run} metrics=[]", "metrics=[]: name at least one, such as [fid]"),
    ("ckpt={run} num_samples=1", "num_samples=1: fid needs at least 2 samples"),
    ("ckpt={run} metrics=[isc] num_samples=4", "metrics=isc: the extractor returns no logits; leave isc out, or use extractor=inception"),
    ("samples=half.npz", "reference: is missing; set it to the images to compare with"),
    ("samples=half.npz reference=digits metrics=[bpd]", "metrics=bpd: requires a model; use ckpt= instead"),
    ("samples=half.npz reference=nowhere", "reference=nowhere: no such folder; set reference to a folder of images"),
    ("samples=half.npz reference=digits num_samples=2000", "num_samples=2000: only 899 images exist; request fewer"),
    ("ckpt={run} metrics=[bpd] bound_steps=1001", "bound_steps=1001: the process has 1000 steps; use 1 to 1000, or null for all"),
    ("ckpt={run} reference=half.npz metrics=[loss]", "reference=half.npz: contains images only; loss and bpd need train, val or a data group"),
    ("ckpt={run} reference=val", "reference=val: no data are held out; train with data.val_fraction=0.1, or leave it out"),
    ("ckpt={run} reference=big.npz", "reference=big.npz: has 256 features per image, the samples have 64; use images of the same size and colour"),
    ("samples=half.npz reference=digits image_size=8", "image_size=8: has an effect on folders of images only, and none is evaluated; leave it out"),
    ("ckpt={run} color=grey", "color=grey: has an effect on folders of images only, and none is evaluated; leave it out"),
    ("ckpt={run} reference=large", "reference=large: has 256 features per image, the samples have 64; set image_size=[8,8] color=grey"),
    ("ckpt={run} reference=folder", "reference=folder: cannot be read (data.path: is missing); use a folder or an .npz of its images"),
    ("ckpt={run} batch_size=0", "batch_size=0: must be at least 1"),
    ("samples=half.npz reference=digits steps=50", "steps=50: has no effect on samples=; leave it out, or evaluate a model with ckpt="),
    ("samples=half.npz reference=digits guidance=1", "guidance=1: has no effect on samples=; leave it out, or evaluate a model with ckpt="),
    ("samples=half.npz reference=digits classes=[3]", "classes=[3]: has no effect on samples=; leave it out, or evaluate a model with ckpt="),
    ("samples=half.npz reference=digits weights=raw", "weights=raw: has no effect on samples=; leave it out, or evaluate a model with ckpt="),
    ("samples=half.npz reference=digits sampler=ddpm", "sampler=ddpm: has no effect on samples=; leave it out, or evaluate a model with ckpt="),
    ("samples=half.npz reference=digits sampler.order=1", "sampler.order=1: has no effect on samples=; leave it out, or evaluate a model with ckpt="),
    ("samples=half.npz reference=digits num_images=5", "num_images=5: has no effect on samples=; leave it out, or evaluate a model with ckpt="),
    ("samples=half.npz reference=digits precision=bf16", "precision=bf16: has no effect on samples=; leave it out, or evaluate a model with ckpt="),
    ("samples=half.npz reference=digits seed=3", "seed=3: has no effect on samples=; leave it out, or evaluate a model with ckpt="),
    ("ckpt={run} model=unet", "model=unet: the model comes from the checkpoint; leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "line"), ERRORS, ids=[options for options, _ in ERRORS])
def test_errors(command, trained, options, line):
    digits("half.npz", range(0, 1797, 2))
    np.savez("big.npz", arr_0=np.zeros((9, 16, 16, 1), np.uint8))
    Path("large").mkdir()
    Image.new("L", (16, 16)).save("large/a.png")
    ended = command("evaluate", "extractor=pixels", *options.format(run=trained).split())
    assert ended.status == 1 and ended.line == f"ddpm-evaluate: {line}"
    assert not Path(trained, "evaluations").exists()


def test_options_without_effect_cause_warnings(command, trained):
    options = ("metrics=[loss]", "num_images=2", "steps=3", "extractor=pixels", "classes=null")
    ended = command("evaluate", f"ckpt={trained}", *options)
    assert ended.status == 0
    warnings = [line for line in ended.err.splitlines() if line.startswith("warning: ")]
    problem = "has no effect on metrics=[loss]"
    assert warnings == [f"warning: steps=3 {problem}", f"warning: extractor=pixels {problem}"]


@pytest.mark.slow
def test_two_processes_equal_one(command, trained):
    options = (f"ckpt={trained}", "metrics=[fid,kid,prc,bpd,loss]", *SMALL)
    assert command("evaluate", "out=one", *options).status == 0
    assert command("evaluate", "out=two", "launch.processes=2", *options).status == 0
    one, two = values("one"), values("two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-6), name
