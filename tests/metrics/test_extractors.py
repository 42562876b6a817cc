"""Extractors: what they give, what they refuse, and that no file is unpickled before its hash."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from ddpm.config.schema import check
from ddpm.errors import ConfigError
from ddpm.metrics import CLIP, Custom, DINOv2, Inception, Pixels
from tests.metrics.torch_fidelity_reference import Convolutions, custom, pictures, save


def told(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# pixels


def test_pixels_are_the_image_flattened_and_divided_by_255():
    images = pictures(3, 2, 4, 5)
    features = Pixels()(images)
    assert features.shape == (3, 40) and features.dtype == torch.float32
    assert torch.equal(features[1, 27], images[1, 1, 1, 2].float() / 255)  # 27 = 1*20 + 1*5 + 2
    assert Pixels()(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)).tolist() == [[1.0]]
    assert Pixels().output_sizes((1, 8, 8), "cpu") == (64, None)
    assert set(Pixels().outputs(images)) == {"features"}
    assert Pixels().resize == "none"
    assert Pixels().provenance() == {"name": "pixels", "sha256": Pixels.sha256}


def test_images_are_uint8():
    with pytest.raises(AssertionError):
        Pixels()(torch.zeros(1, 1, 2, 2))


# custom


def test_custom_gives_what_its_file_gives(tmp_path):
    images = pictures(5, 3, 9, 9)
    torch.manual_seed(0)
    features, logits = Convolutions(3)(images)
    extractor = custom(tmp_path / "net.pt", 3)
    found = extractor.outputs(images)
    assert torch.equal(found["features"], features) and torch.equal(found["logits"], logits)
    assert torch.equal(extractor(images), features)
    assert extractor.output_sizes((3, 9, 9), "cpu") == (48, 7)
    assert extractor.sha256 == hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest()
    alone = custom(tmp_path / "alone.pt", 3, logits=False)
    assert set(alone.outputs(images)) == {"features"} and torch.equal(alone(images), features)
    assert alone.output_sizes((3, 9, 9), "cpu") == (48, None)


class Returns(nn.Module):
    def __init__(self, what: str):
        super().__init__()
        self.what = what

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        if self.what == "whole":
            return flat
        if self.what == "maps":
            return images.float()
        if self.what == "double":
            return flat.double()
        if self.what == "half":
            return flat.half()
        return flat[:1].float()


class Three(nn.Module):
    def forward(self, images: torch.Tensor):
        return images, images, images


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(images.flatten(1).float() + 1)


def returning(path, module):
    save(module, path)
    made = Custom(path=str(path))
    made.prepare("cpu")
    return made


@pytest.mark.parametrize(
    ("what", "shape"),
    [
        ("whole", "uint8 of shape (2, 16)"),
        ("maps", "float32 of shape (2, 1, 4, 4)"),
        ("one", "float32 of shape (1, 16)"),
    ],
)
def test_a_custom_extractor_gives_a_row_of_floats_an_image(tmp_path, what, shape):
    extractor = returning(tmp_path / "a.pt", Returns(what))
    assert told(lambda: extractor(pictures(2, 1, 4, 4))) == (
        f"extractor=custom: gives features in {shape} for 2 images; they must be floats of shape "
        "(images, features)"
    )


def test_double_stays_and_half_becomes_single(tmp_path):
    images = pictures(2, 1, 4, 4)
    kinds = {"double": torch.float64, "half": torch.float32}
    for what, dtype in kinds.items():
        features = returning(tmp_path / f"{what}.pt", Returns(what))(images)
        assert features.dtype == dtype and torch.equal(features, images.flatten(1).to(dtype))


def test_a_custom_extractor_does_not_train(tmp_path):
    module = Dropping()
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.script(module.train()), str(tmp_path / "a.pt"))
    extractor = Custom(path=str(tmp_path / "a.pt"))
    extractor.prepare("cpu")
    images = pictures(4, 1, 4, 4)
    features = extractor(images)
    assert torch.equal(features, images.flatten(1).float() + 1)
    assert not features.requires_grad


def test_what_is_wrong_with_a_custom_file_is_told_in_a_line(tmp_path):
    path = tmp_path / "a.pt"
    assert told(lambda: Custom(path=str(path))) == (
        f"path={path}: file not found; save a TorchScript module there with torch.jit.save"
    )
    path.write_bytes(b"not an archive")
    said = told(lambda: Custom(path=str(path)).prepare("cpu"))
    assert said.startswith(f"extractor.path={path}: cannot be loaded as TorchScript (")
    assert said.endswith("); write it again with torch.jit.save")
    extractor = custom(path, 3)
    said = told(lambda: extractor.output_sizes((1, 9, 9), "cpu"))
    assert said.startswith(f"extractor.path={path}: fails on uint8 images of shape (1, 1, 9, 9): ")
    assert "to have 3 channels, but got 1 channels instead" in said
    three = returning(path, Three())
    assert told(lambda: three(pictures(2, 1, 4, 4))) == (
        f"extractor.path={path}: must give a tensor of features, or a tuple of features and logits"
    )


# published weights


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def bomb(tmp_path):
    path = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    return path


def test_weights_are_hashed_before_they_are_unpickled(tmp_path, bomb):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    found = hashlib.sha256(bomb.read_bytes()).hexdigest()
    assert told(lambda: Inception(weights=str(bomb))) == (
        f"weights={bomb}: is not the published file of inception-v3-compat: its sha256 is "
        f"{found[:12]}..., not 6726825d0af5...; fetch it from https://github.com/toshas/"
        "torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
    )
    assert told(lambda: CLIP(weights=str(bomb))).startswith(
        f"weights={bomb}: is not the published file of clip-vit-b-32: its sha256 is {found[:12]}"
    )
    assert not (tmp_path / "ran").exists()
    with pytest.raises(RuntimeError, match="Invalid magic number"):  # but by then it has run
        FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(bomb))
    assert (tmp_path / "ran").exists()


def test_weights_that_change_after_the_start_are_seen(tmp_path, bomb, monkeypatch):
    monkeypatch.setattr(Inception, "sha256", hashlib.sha256(bomb.read_bytes()).hexdigest())
    extractor = Inception(weights=str(bomb))
    bomb.write_bytes(bomb.read_bytes() + b" ")
    assert told(lambda: extractor.prepare("cpu")).startswith(f"extractor.weights={bomb}: is not")
    assert not (tmp_path / "ran").exists()


def test_weights_of_a_download_are_hashed_too(tmp_path, bomb, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    there = tmp_path / "checkpoints" / bomb.name
    there.write_bytes(bomb.read_bytes())
    said = told(lambda: Inception().prepare("cpu"))
    assert said.startswith(f"extractor.weights={there}: is not the published file")
    assert said.endswith("; remove it: it is downloaded anew")
    assert not (tmp_path / "ran").exists()


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    def refuse(url, path, hash_prefix):
        assert path == str(tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")
        assert hash_prefix == Inception.sha256 and len(hash_prefix) == 64
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert told(lambda: Inception().prepare("cpu")) == (
        "extractor.weights: the download of https://github.com/toshas/torch-fidelity/releases/"
        "download/v0.2.0/weights-inception-2015-12-05-6726825d.pth failed (<urlopen error "
        "[Errno -3] Temporary failure in name resolution>); fetch it on another machine and add "
        "extractor.weights=path"
    )


def test_dinov2_that_cannot_be_had_says_what_to_do(monkeypatch):
    def refuse(repository, name):
        assert (repository, name) == ("facebookresearch/dinov2", "dinov2_vits14")
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load", refuse)
    assert told(lambda: DINOv2(size="s").prepare("cpu")) == (
        "extractor=dinov2-vit-s-14: cannot be loaded from torch.hub (no network); copy "
        f"{torch.hub.get_dir()} from a machine that has it, or use another extractor"
    )


def test_dinov2_is_known_by_the_weights_that_came(monkeypatch):
    def stand_in(value):
        net = nn.Sequential(nn.AvgPool2d(224), nn.Flatten(), nn.BatchNorm1d(3))
        nn.init.constant_(net[2].bias, value)
        return net

    hashes = []
    for value in (0.0, 0.0, 1.0):
        monkeypatch.setattr(torch.hub, "load", lambda *_, value=value: stand_in(value))
        extractor = DINOv2()
        extractor.prepare("cpu")
        hashes.append(extractor.sha256)
        grey = extractor(torch.full((2, 1, 5, 5), 255, dtype=torch.uint8))
        expected = torch.tensor([[(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]])
        torch.testing.assert_close(grey, (expected + value).expand(2, 3), atol=1e-3, rtol=0)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Inception with weights of our own, as a file."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        net = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(net.state_dict(), path)
    return path


def test_inception_is_torch_fidelitys_with_its_layers(untrained, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    digest = hashlib.sha256(untrained.read_bytes()).hexdigest()
    monkeypatch.setattr(Inception, "sha256", digest)
    extractor = Inception(weights=str(untrained))
    extractor.prepare("cpu")
    direct = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], str(untrained)
    )
    images = pictures(2, 3, 40, 32)
    features, logits = direct(images)
    found = extractor.outputs(images)
    assert torch.equal(found["features"], features) and torch.equal(found["logits"], logits)
    assert extractor.output_sizes((1, 8, 8), "cpu") == (2048, 1008)
    assert torch.equal(extractor(images[:, :1]), direct(images[:, :1].repeat(1, 3, 1, 1))[0])
    assert told(lambda: extractor.output_sizes((2, 8, 8), "cpu")) == (
        "extractor=inception-v3-compat: takes images of 1 or 3 channels, these have 2; use "
        "extractor=pixels"
    )


def test_layers_are_those_that_torch_fidelity_takes():
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Theirs

    assert Theirs.get_default_feature_layer_for_metric("fid") == Inception._layers[0]
    assert Theirs.get_default_feature_layer_for_metric("isc") == Inception._layers[1]


# options


def test_options_are_keyword_only_and_checked():
    assert check({"weights": None}, Inception, "extractor") == {"weights": None}
    assert check({}, Pixels, "extractor") == {}
    assert check({"path": "a.pt"}, Custom, "extractor") == {"path": "a.pt"}
    assert told(lambda: check({}, Custom, "extractor")) == (
        "extractor.path: is missing; add extractor.path=..."
    )
    said = told(lambda: check({"size": "xl"}, DINOv2, "extractor"))
    assert said.startswith("extractor.size=xl: unknown choice")
    said = told(lambda: check({"model": "rn51"}, CLIP, "extractor"))
    assert said.startswith("extractor.model=rn51: unknown choice; did you mean 'rn50'?")


def test_every_model_has_a_name_of_torch_fidelitys():
    from typing import get_args

    from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIPS
    from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA as DINOS

    from ddpm.metrics.pretrained import ClipModel

    models = get_args(ClipModel)
    assert {CLIP(model=model).name for model in models} == set(CLIPS)
    assert all(CLIP(model=m).sha256 == CLIPS[f"clip-{m}"]["hash"] for m in models)
    assert {DINOv2(size=size).name for size in ("s", "b", "l", "g")} == set(DINOS)
