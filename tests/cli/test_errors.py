"""Errors of the user: one line with key, value and remedy, and exit status 1."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TRAIN = [
    # (options, the whole line after "ddpm-train: ")
    ("trainer.max_step=5", "trainer.max_step=5: unknown option; did you mean 'trainer.max_steps'?"),
    ("batch_size=5", "batch_size=5: unknown option; use trainer.batch_size=5"),
    ("trainer.foo=1", "trainer.foo=1: unknown option; --help lists them"),
    ("schedule.foo=1", "schedule.foo=1: unknown option (there are: schedule.max_beta, "
     "schedule.num_steps, schedule.offset, schedule.zero_terminal_snr)"),
    ("sede=5", "sede=5: unknown option; did you mean 'seed'?"),
    ("+trainer.max_stepz=1", "trainer.max_stepz=1: unknown option; did you mean 'trainer.max_steps'?"),
    ("+sede=1", "sede=1: unknown option; did you mean 'seed'?"),
    ("trainer.max_steps=abc", "trainer.max_steps=abc: must be a whole number"),
    ("trainer.max_steps=1.5", "trainer.max_steps=1.5: must be a whole number"),
    ("trainer.max_steps=true", "trainer.max_steps=true: must be a whole number"),
    ("trainer.max_steps=0", "trainer.max_steps=0: must be at least 1"),
    ("launch.processes=two", "launch.processes=two: must be a whole number or auto"),
    ("launch.processes=0", "launch.processes=0: must be at least 1, or auto for one per GPU"),
    ("launch=2", "launch=2: must be a group of options"),
    ("launch.proceses=2", "launch.proceses=2: unknown option; did you mean 'launch.processes'?"),
    ("trainer.on_nonfinite=go", "trainer.on_nonfinite=go: unknown choice (there are: skip, stop)"),
    ("trainer.best=fid", "trainer.best=fid: must be null or one of loss, loss_q0, loss_q1, loss_q2, loss_q3; to follow another metric, set trainer.evaluate_every"),
    ("trainer.keep_every=0", "trainer.keep_every=0: must be at least 1"),
    ("override=maybe", "override=maybe: must be true or false"),
    ("trainer.lr=fast", "trainer.lr=fast: must be a number or null"),
    ("trainer.weight_decay=null", "trainer.weight_decay=null: must be a number"),
    ("trainer.lr=-1", "trainer.lr=-1.0: must be above 0"),
    ("trainer.keep_last=1", "trainer.keep_last=1: must be at least 2"),
    ("model.dim_mults=4", "model.dim_mults=4: must be a list, each a whole number, like [1,2] or null"),
    ("trainer.precision=fp8", "trainer.precision=fp8: unknown choice (there are: auto, bf16, fp16, no)"),
    ("objective.loss=l3", "objective.loss=l3: unknown choice (there are: huber, l1, l2)"),
    ("objective.min_snr_gamma=-1", "objective.min_snr_gamma=-1.0: must be above 0, or null"),
    ("model=unett", "model=unett: unknown choice (there are: iddpm_unet, simple_unet, unet, unet1d, unet3d); did you mean 'unet'?"),
    ("data=folder", "data.path: is missing; add data.path=..."),
    ("data=folder data.path=nowhere", "data.path=nowhere: no such folder; set data.path to a folder of images"),
    ("model.dim_mults=[1,2,4,8,16]", "model.dim_mults=[1,2,4,8,16]: 5 levels halve the size 4 times, but 8x8 is not divisible by 16; set data.image_size to a multiple of 16, shorten dim_mults or set pad=true"),
    ("model=iddpm_unet model.model_channels=20", "model.model_channels=20: GroupNorm has 32 groups; make it a multiple of 32"),
    ("model=unet1d", "model.dims=1: unet1d is a sequence network but the data are images of 8x8; use model=unet"),
    ("schedule=linear schedule.num_steps=10", "schedule.num_steps=10: beta at step 5 is 1.116, outside (0, 1); use more steps, other schedule parameters, or schedule=cosine"),
    ("schedule.num_steps=0", "schedule.num_steps=0: needs at least 1 step"),
    ("sampler.steps=2000", "sampler.steps=2000: the process has 1000 steps; use 1 to 1000"),
    ("diffusion.label_dropout=0.1", "diffusion.label_dropout=0.1: the data have no labels to drop; set data.class_cond=true, or leave it at 0"),
    ("trainer.batch_size=7 trainer.accumulate=2", "trainer.batch_size=7: must be a multiple of 2 (accumulate 2 x 1 processes)"),
    ("trainer.weight_decay=-1", "trainer.weight_decay=-1.0: must be 0 (off) or above"),
    ("trainer.num_workers=-1", "trainer.num_workers=-1: must be at least 0; null = chosen for the data"),
    ("data=null", "data=null: must be one of its choices; --help lists them"),
    ("name=latest", "name=latest: is the link to the last run; to resume that run, use resume=outputs/latest"),
    ("seed=null", "seed=null: must be a whole number"),
    ("name=a/b", "name=a/b: is the name of one folder, without / in it; its parent is out="),
    ("resume=nowhere", "resume=nowhere: run not found; leave it out to begin one"),
    ("data._target_=os.system", "data._target_=os.system: is not exported by ddpm or by a plugin; for a class of your own, my_module.MyClass, add plugins=[my_module]"),
    ("objective._target_=p2.P2", "objective._target_=p2.P2: is not exported by ddpm or by a plugin; add plugins=[p2]"),
    ("sampler._target_=ddpm.samplers.Sampled", "sampler._target_=ddpm.samplers.Sampled: is not exported by ddpm or by a plugin; choose one with sampler=..."),
    ("data=sequence data.path=.", "data.path=.: is a folder; use a file in it"),
    ("~nothing.x", "nothing.x: unknown option (there are: data, device, diffusion, evaluation, init, launch, model, name, objective, out, override, plugins, resume, sampler, schedule, seed, threads, timesteps, trainer)"),
    ("plugins=[no_such_module]", "plugins=[no_such_module]: cannot import no_such_module (No module named 'no_such_module'); run the command in the folder of no_such_module.py, or add that folder to PYTHONPATH"),
    ("name='a", "name='a: cannot be read; quote values with = , or spaces: 'key=\"the value\"'"),
]  # fmt: skip

SAMPLE = [
    ("model=unet", "model=unet: the model comes from the checkpoint; leave it out"),
    ("model.dim=3", "model.dim=3: the model comes from the checkpoint; leave it out"),
    ("+schedule=linear", "schedule: the schedule comes from the checkpoint; leave it out"),
    ("sampler=ddim sampler.etta=2", "sampler.etta=2: unknown option; did you mean 'sampler.eta'?"),
    ("sampler=ddim sampler.eta=2", "sampler.eta=2.0: must be between 0 (deterministic) and 1 (ancestral)"),
    ("sampler=ddimm", "sampler=ddimm: unknown choice (there are: ddim, ddpm, deis, dpmpp, "
     "heun, ipndm, unipc); did you mean 'ddim'?"),
    ("steps=0", "steps=0: must be at least 1; null = the default"),
    ("steps=1001", "steps=1001: the process has 1000 steps; use 1 to 1000"),
    ("steps=10 sampler.steps=5", "steps=10: is the same option as sampler.steps=5; give only one of them"),
    ("sampler.steps=ddim50 steps=50", "steps=50: is the same option as sampler.steps=ddim50; give only one of them"),
    ("steps=1001 sampler.steps=1001", "steps=1001: the process has 1000 steps; use 1 to 1000"),
    ("steps=1001 sampler.steps=null", "steps=1001: the process has 1000 steps; use 1 to 1000"),
    ("num_samples=0", "num_samples=0: must be at least 1"),
    ("classes=[3]", "classes=[3]: the model is not class-conditional; leave it out, or train with data.class_cond=true"),
    ("guidance=3", "guidance=3.0: the model was not trained for guidance; train with data.class_cond=true diffusion.label_dropout=0.1, or set guidance to 1"),
    ("guidance_rescale=7", "guidance_rescale=7.0: must be between 0 (off) and 1"),
    ("guidance_rescale=0.7", "guidance_rescale=0.7: requires a guidance other than 1; set it to 0"),
    ("steps=ddim300", "steps=ddim300: no integer stride selects 300 of 1000 steps; use steps=300"),
    ("steps=dim50", "steps=dim50: invalid value; expected a number, ddim50, or sections such as [10,15,20]"),
    ("format=jpg", "format=jpg: unknown choice; did you mean 'png'? (there are: png, gif, npz, npy)"),
    ("weights=emma", "weights=emma: unknown choice; did you mean 'ema'? (there are: ema, raw)"),
    ("precision=fp16", "precision=fp16: fp16 needs a GPU; on a CPU use bf16, or no for float32"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "line"), TRAIN, ids=[options for options, _ in TRAIN])
def test_train(command, options, line):
    if "precision=fp16" in options and torch.cuda.is_available():
        pytest.skip("this machine has a GPU: fp16 is allowed")
    ended = command("train", *options.split())
    assert (ended.status, ended.line) == (1, f"ddpm-train: {line}")
    assert os.listdir() == [], "a refused run left something behind"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Tiny run that the failing commands do not change."""
    import sys

    from hydra.core.global_hydra import GlobalHydra

    from ddpm.cli import train
    from tests.cli.conftest import TINY

    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["t", f"out={place}", "name=a", "trainer.max_steps=2", *TINY])
        GlobalHydra.instance().clear()
        train.main()
    return place / "a"


@pytest.mark.parametrize(("options", "line"), SAMPLE, ids=[options for options, _ in SAMPLE])
def test_sample(command, run, options, line):
    if "precision=fp16" in options and torch.cuda.is_available():
        pytest.skip("this machine has a GPU: fp16 is allowed")
    ended = command("sample", f"ckpt={run}", *options.split())
    assert (ended.status, ended.line) == (1, f"ddpm-sample: {line}")
    assert os.listdir() == [] and not (run / "generated").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("a=1", "b: is missing; add b=..."),
        ("a=1 b=no.png", "b=no.png: no such file"),
        ("a=1 b=2 t=1000", "t=1000: the process has 1000 steps; use 0 to 999"),
        ("a=1 b=2 num_frames=1", "num_frames=1: must be at least 2, the two ends"),
    ],
)
def test_interpolate(command, run, options, line):
    ended = command("interpolate", f"ckpt={run}", *options.split())
    assert (ended.status, ended.line) == (1, f"ddpm-interpolate: {line}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_unavailable_precision_and_gpu(command):
    ended = command("train", "trainer.precision=fp16")
    remedy = "fp16 needs a GPU; on a CPU use bf16, or no for float32"
    assert ended.line == f"ddpm-train: trainer.precision=fp16: {remedy}"
    ended = command("train", "device=cuda")
    remedy = "this machine has no GPU that torch can use; use device=auto or device=cpu"
    assert ended.line == f"ddpm-train: device=cuda: {remedy}"


def picture(path, mode="RGB", size=(16, 16)):
    Path(path).parent.mkdir(exist_ok=True)
    Image.new(mode, size, 100).save(path)


def test_folders_without_valid_images(command):
    Path("imgs").mkdir()
    ended = command("train", "data=folder", "data.path=imgs")
    assert ended.status == 1 and ended.line.startswith(
        "ddpm-train: data.path=imgs: contains no images (.jpg"
    )
    picture("imgs/a.png")
    picture("imgs/b.png", mode="L")
    ended = command("train", "data=folder", "data.path=imgs")
    assert ended.line.startswith("ddpm-train: data.color=auto: ") and "data.color=rgb" in ended.line
    Path("imgs/b.png").write_bytes(Path("imgs/a.png").read_bytes()[:40])
    ended = command("train", "data=folder", "data.path=imgs")
    assert ended.status == 1 and "imgs/b.png" in ended.line
    assert sorted(os.listdir()) == ["imgs"]


def test_images_on_a_sequence_network_and_back(command):
    np.save("waves.npy", np.zeros((4, 2, 32), dtype=np.float32) + np.arange(32))
    ended = command("train", "data=sequence", "data.path=waves.npy")
    assert ended.status == 1 and "use model=unet1d" in ended.line


def test_fewer_samples_than_a_batch_are_reported(command, tiny):
    for name in "abc":
        picture(f"imgs/{name}.png")
    ended = command("train", "data=folder", "data.path=imgs", "trainer.max_steps=2", *tiny)
    assert ended.status == 0
    assert (
        "3 samples of 3x16x16 (fewer than a batch: each batch contains some of them more than once)"
        in ended.out
    )


def test_places_that_cannot_be_written(command, run, tiny):
    Path("file").touch()
    ended = command("train", "out=file", "trainer.max_steps=2", *tiny)
    assert ended.status == 1 and ended.line.startswith("ddpm-train: out=file/")
    assert ended.line.endswith("choose another folder with out=")
    ended = command("sample", f"ckpt={run}", "out=file", "steps=2")
    assert ended.line.startswith("ddpm-sample: out=file: cannot be written")
    assert os.listdir() == ["file"] and not Path("file").read_bytes()


def damaged(trained, change):
    """Apply ``change`` to the folder of the only checkpoint of a run; return the folder."""
    folder = Path(trained, "checkpoints/step-00000002")
    change(folder)
    return folder


def replaced(folder, name, content):
    """Change a file and its entry in the manifest, as an attacker would."""
    import hashlib

    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][name] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "name", ["config.json", "ema.safetensors", "model.safetensors", "state.pt"]
)
@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_truncated_checkpoints(command, trained, name, length):
    path = (
        damaged(
            trained,
            lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length]),
        )
        / name
    )
    reason = f"is damaged: {name} is not what was written; use another checkpoint"
    if name == "state.pt":  # only resuming needs it
        assert command("sample", f"ckpt={trained}", "steps=2", "num_samples=1").status == 0
        ended = command("train", f"resume={trained}", "trainer.max_steps=3")
        assert ended.status == 1 and ended.line == f"ddpm-train: ckpt={path.parent}: {reason}"
        return
    ended = command("sample", f"ckpt={trained}", "steps=2")
    assert ended.status == 1
    assert ended.line == f"ddpm-sample: ckpt={path.parent}: {reason}"


def test_a_checkpoint_of_another_version(command, trained):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))

    damaged(trained, change)
    ended = command("sample", f"ckpt={trained}")
    assert (
        ended.status == 1 and "has format 99, but this version of ddpm reads format 1" in ended.line
    )


def test_missing_checkpoints(command, run):
    ended = command("sample", "ckpt=nowhere")
    assert ended.line.startswith("ddpm-sample: ckpt=nowhere: run or checkpoint not found")
    Path("empty").mkdir()
    ended = command("sample", "ckpt=empty")
    assert ended.line.startswith("ddpm-sample: ckpt=empty: contains no checkpoint")
    file = run / "checkpoints/step-00000002/ema.safetensors"
    ended = command("sample", f"ckpt={file}")
    assert "is a file; use the folder of a run" in ended.line


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def test_nothing_in_a_malicious_checkpoint_is_executed(command, trained):
    folder = Path(trained, "checkpoints/step-00000002")
    header = json.loads((folder / "config.json").read_text())
    for target in (
        "os.system",
        "torch.load",
        "ddpm.training.checkpoint.os.system",
        "ddpm.data.codec.Path",
    ):
        header["config"]["model"]["_target_"] = target
        replaced(folder, "config.json", json.dumps(header).encode())
        ended = command("sample", f"ckpt={trained}", "steps=2")
        assert ended.status == 1 and f"model._target_={target}: is not exported" in ended.line
    header["config"]["model"]["_target_"] = "ddpm.models.UNet"
    header["config"]["model"]["dim"] = "${oc.env:HOME}"
    replaced(folder, "config.json", json.dumps(header).encode())
    ended = command("sample", f"ckpt={trained}", "steps=2")
    assert ended.line == "ddpm-sample: model.dim=${oc.env:HOME}: must be a whole number"


def test_nothing_in_a_malicious_state_is_executed(command, trained):
    folder = Path(trained, "checkpoints/step-00000002")
    for content in (pickle.dumps(Evil(), protocol=2), b"not a pickle at all"):
        replaced(folder, "state.pt", content)
        ended = command("train", f"resume={trained}", "trainer.max_steps=4")
        assert ended.status == 1 and "state.pt" in ended.line
    assert not Path("pwned").exists()


def test_weights_that_do_not_fit(command, trained):
    folder = Path(trained, "checkpoints/step-00000002")
    header = json.loads((folder / "config.json").read_text())
    header["config"]["model"]["dim"] = 16
    replaced(folder, "config.json", json.dumps(header).encode())
    ended = command("sample", f"ckpt={trained}", "steps=2")
    assert ended.status == 1 and "its weights do not fit its config" in ended.line


def test_a_loss_that_is_not_finite_stops_before_the_weights(command, tiny):
    ended = command(
        "train", "name=nan", "trainer.max_steps=50", "trainer.lr=1e30", "trainer.clip_grad_norm=null",
        "trainer.checkpoint_every=1", *tiny,
    )  # fmt: skip
    assert ended.status == 1
    assert "it was not applied, and the last good checkpoint is" in ended.line
    for path in Path("outputs/nan/checkpoints").iterdir():
        from safetensors.torch import load_file

        assert all(v.isfinite().all() for v in load_file(path / "model.safetensors").values())
