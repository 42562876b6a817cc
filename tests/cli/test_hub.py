"""Upload and download of models with a stand-in of the Hugging Face hub, a folder."""

import fnmatch
import inspect
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml

import ddpm
from ddpm.errors import ConfigError
from ddpm.interop.diffusers_import import read_folder
from ddpm.publication import card, check_push, upload
from ddpm.training.checkpoint import find, load
from tests.cli.test_diffusers import write_pipeline

STORED = Path(__file__).parent / "stored_runs" / "unet"


@pytest.fixture
def lookups():
    """Return the repositories that were looked up at the hub, in order."""
    return []


@pytest.fixture
def hub(tmp_path_factory, monkeypatch, lookups):
    """Replace the hub by a folder; calls must fit the signatures of huggingface_hub."""
    root = tmp_path_factory.mktemp("hub")
    download = inspect.signature(huggingface_hub.snapshot_download)
    real = {name: inspect.signature(getattr(huggingface_hub.HfApi, name))
            for name in ("create_repo", "upload_folder")}  # fmt: skip

    class Api:
        def create_repo(self, *args, **kwargs):
            call = real["create_repo"].bind(self, *args, **kwargs).arguments
            (root / call["repo_id"]).mkdir(parents=True, exist_ok=call["exist_ok"])
            return f"https://hub/{call['repo_id']}"

        def upload_folder(self, *args, **kwargs):
            call = real["upload_folder"].bind(self, *args, **kwargs).arguments
            place = root / call["repo_id"]
            shutil.copytree(call["folder_path"], place, dirs_exist_ok=True)

    def snapshot_download(*args, **kwargs):
        call = download.bind(*args, **kwargs).arguments
        lookups.append(call["repo_id"])
        repository = root / call["repo_id"]
        if not repository.is_dir():
            raise FileNotFoundError(f"404: {call['repo_id']}")
        place = Path(call["local_dir"] or root / "cache")
        (place / ".cache/huggingface").mkdir(parents=True, exist_ok=True)
        for path in repository.rglob("*"):
            name = path.relative_to(repository).as_posix()
            requested = any(fnmatch.fnmatch(name, each) for each in call["allow_patterns"])
            if path.is_file() and requested:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place / name)
        return str(place)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def test_a_run_is_uploaded_downloaded_and_sampled(command, hub, lookups):
    shutil.copytree(STORED, "run")
    ended = command("export", "ckpt=run", "push=hf://me/digits")
    assert ended.status == 0 and "uploaded: https://hub/me/digits" in ended.out, ended.err
    assert lookups == []
    card = (hub / "me/digits/README.md").read_text()
    assert "ddpm-sample ckpt=hf://me/digits" in card and "at step 2." in card
    assert "This checkpoint was not evaluated." in card and "_target_: ddpm.models.UNet" in card
    source, folder = find("run", print), Path("outputs/me--digits")
    ended = command("sample", "ckpt=hf://me/digits", "num_samples=1", "steps=2")
    assert ended.status == 0 and str(folder) in ended.out, ended.err
    assert lookups == ["me/digits"]
    back = load(folder / "checkpoints/step-00000002")
    for which in ("raw", "ema"):
        expected, actual = source.weights(which), back.weights(which)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    with pytest.raises(ConfigError) as caught:
        find("hf://me/none", print)
    assert str(caught.value).startswith(
        "ckpt=hf://me/none: cannot be downloaded from the Hugging Face hub (FileNotFoundError: 404"
        ": me/none); check the name and the network, or copy it here and use the folder: hf "
    )


def test_the_card_has_metrics_with_provenance_and_no_places_of_the_machine(hub):
    folder = hub / "checkpoint"
    shutil.copytree(STORED / "checkpoints/step-00000002", folder)
    row = {"name": "fid_5k", "metric": "fid", "value": 12.5, "error": None,
           "higher_is_better": False, "reference": "/home/me/data", "samples": 5000}  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps({"metrics": [row], "warnings": []}))
    source = load(folder)
    source.config["data"]["path"] = "/home/me/secret/data"
    text = card(source, "me/digits", False)
    assert "| fid_5k | 12.5 | `{" in text and '"samples": 5000' in text
    assert "/home" not in text and "path: data" in text
    upload(source, "me/other", None)
    written = "".join(p.read_text() for p in (hub / "me/other").rglob("*.*a*l"))
    assert "/home" not in written and "path: data" in written


def test_a_pipeline_is_uploaded_and_imported(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pipeline()
    files = [path for path in Path("p").rglob("*") if path.is_file()]
    pipeline = {path.relative_to("p").as_posix(): path.read_bytes() for path in files}
    upload(load(STORED / "checkpoints/step-00000002"), "me/pipeline", pipeline)
    assert 'from_pretrained("me/pipeline")' in (hub / "me/pipeline/README.md").read_text()
    with pytest.raises(ConfigError) as caught:
        find("hf://me/pipeline", print)
    assert str(caught.value).endswith(
        "is a pipeline of diffusers; use ddpm-import source=diffusers file=me/pipeline"
    )
    for name in ("me/pipeline", "hf://me/pipeline"):
        assert read_folder(name, {}).size == (8, 8)
    for push, format, message in (
        ("me/digits", "diffusers", "push=me/digits: is not the name of a repository; use hf://own"),
        ("hf://a/b", "simple-unet", "push=hf://a/b: uploads format=safetensors or diffusers only"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_push(push, format)
        assert str(caught.value).startswith(message)


def test_a_folder_of_the_same_name_is_not_overwritten(command, hub):
    shutil.copytree(STORED, "run")
    assert command("export", "ckpt=run", "push=hf://me/digits").status == 0
    shutil.copytree("run", "outputs/me--digits")
    ended = command("sample", "ckpt=hf://me/digits", "num_samples=1", "steps=1")
    assert ended.status == 1 and ended.err.count("\n") == 1
    assert "outputs/me--digits has files that were not downloaded; rename it" in ended.err


FEW = ("trainer.lr=1e-12", "trainer.batch_size=4", "trainer.preview_every=0", "threads=1")


def averages(run):
    return safetensors.torch.load_file(f"{run}/checkpoints/step-00000001/ema.safetensors")


def test_a_run_starts_from_a_repository(command, hub, lookups, capsys):
    """The command and Python make the same run; it is resumed without the hub."""
    upload(load(STORED / "checkpoints/step-00000002"), "me/digits", None)
    place = "outputs/me--digits/checkpoints/step-00000002"
    typed = (*FEW, "trainer.max_steps=1")
    ended = command("train", "name=a", "init=hf://me/digits", "init.strict=true", *typed)
    assert ended.status == 0 and lookups == ["me/digits"], ended.err
    assert f" weights are the averages of {place}\n" in ended.out
    ddpm.train(["name=b", *typed], init="hf://me/digits")
    assert f" weights are the averages of {place}\n" in capsys.readouterr().out
    assert lookups == ["me/digits"] * 2
    source, here, there = (
        load(Path(place)).weights("ema"),
        averages("outputs/a"),
        averages("outputs/b"),
    )
    assert here.keys() == there.keys() == source.keys()
    for name, value in source.items():
        torch.testing.assert_close(here[name], value, atol=1e-10, rtol=0)
        assert torch.equal(here[name], there[name])
    record = yaml.safe_load(Path("outputs/a/config.yaml").read_text())["init"]
    assert record["ckpt"] == "hf://me/digits" and record["checkpoint"] == str(Path(place).resolve())
    shutil.rmtree(hub / "me")
    shutil.rmtree("outputs/me--digits")
    again = ("name=a", "init=hf://me/digits", "init.strict=true", "trainer.max_steps=2")
    ended = command("train", *again, *FEW)
    assert ended.status == 0 and "from step 1 " in ended.out, ended.err
    assert lookups == ["me/digits"] * 2
    for name, line in (
        ("hf://me/digits", "init=hf://me/digits: cannot be downloaded from the Hugging Face hub "),
        ("hf://digits", "init=hf://digits: is not the name of a repository; use hf://owner/name"),
    ):
        ended = command("train", "name=c", f"init={name}", *typed)
        assert ended.status == 1 and ended.line.startswith(f"ddpm-train: {line}")
    assert not Path("outputs/c").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("interpolate", ("a=1", "b=2", "num_frames=2", "steps=1")),
        ("export", ("format=safetensors", "out=x")),
    ],
)
def test_a_command_looks_a_repository_up_once(command, hub, lookups, name, options):
    upload(load(STORED / "checkpoints/step-00000002"), "me/digits", None)
    ended = command(name, "ckpt=hf://me/digits", *options)
    assert ended.status == 0 and lookups == ["me/digits"], ended.err


def test_a_wrong_name_is_rejected_without_a_look_up(command, hub, lookups):
    ended = command("sample", "ckpt=hf://digits")
    line = "ckpt=hf://digits: is not the name of a repository; use hf://owner/name"
    assert (ended.status, ended.line) == (1, f"ddpm-sample: {line}") and lookups == []
