"""Upload and download of models with a stand-in of the Hugging Face hub, a folder."""

import fnmatch
import inspect
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from ddpm.errors import ConfigError
from ddpm.interop.diffusers_import import read_folder
from ddpm.publication import card, check_push, upload
from ddpm.training.checkpoint import find, load
from tests.cli.test_diffusers import write_pipeline

STORED = Path(__file__).parent / "stored_runs" / "unet"


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
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


def test_a_run_is_uploaded_downloaded_and_sampled(command, hub):
    shutil.copytree(STORED, "run")
    ended = command("export", "ckpt=run", "push=hf://me/digits")
    assert ended.status == 0 and "uploaded: https://hub/me/digits" in ended.out, ended.err
    card = (hub / "me/digits/README.md").read_text()
    assert "ddpm-sample ckpt=hf://me/digits" in card and "at step 2." in card
    assert "This checkpoint was not evaluated." in card and "_target_: ddpm.models.UNet" in card
    source, folder = find("run", print), Path("outputs/me--digits")
    ended = command("sample", "ckpt=hf://me/digits", "num_samples=1", "steps=2")
    assert ended.status == 0 and str(folder) in ended.out, ended.err
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
