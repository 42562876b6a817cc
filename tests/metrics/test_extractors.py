"""Extractors: outputs, error messages, and hash checks before unpickling."""

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


def error_of(call):
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


def test_custom_returns_the_outputs_of_its_module(tmp_path):
    images = pictures(5, 3, 9, 9)
    torch.manual_seed(0)
    features, logits = Convolutions(3)(images)
    extractor = custom(tmp_path / "net.pt", 3)
    outputs = extractor.outputs(images)
    assert torch.equal(outputs["features"], features) and torch.equal(outputs["logits"], logits)
    assert torch.equal(extractor(images), features)
    assert extractor.output_sizes((3, 9, 9), "cpu") == (48, 7)
    assert extractor.sha256 == hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest()
    alone = custom(tmp_path / "alone.pt", 3, logits=False)
    assert set(alone.outputs(images)) == {"features"} and torch.equal(alone(images), features)
    assert alone.output_sizes((3, 9, 9), "cpu") == (48, None)


class Returns(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        if self.kind == "whole":
            return flat
        if self.kind == "maps":
            return images.float()
        if self.kind == "double":
            return flat.double()
        if self.kind == "half":
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
    extractor = Custom(path=str(path))
    extractor.prepare("cpu")
    return extractor


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("whole", "uint8 of shape (2, 16)"),
        ("maps", "float32 of shape (2, 1, 4, 4)"),
        ("one", "float32 of shape (1, 16)"),
    ],
)
def test_custom_features_are_floats_of_shape_images_by_features(tmp_path, kind, shape):
    extractor = returning(tmp_path / "a.pt", Returns(kind))
    assert error_of(lambda: extractor(pictures(2, 1, 4, 4))) == (
        f"extractor=custom: returns features in {shape} for 2 images; they must be floats of shape "
        "(images, features)"
    )


def test_double_features_stay_and_half_features_become_float32(tmp_path):
    images = pictures(2, 1, 4, 4)
    dtypes = {"double": torch.float64, "half": torch.float32}
    for kind, dtype in dtypes.items():
        features = returning(tmp_path / f"{kind}.pt", Returns(kind))(images)
        assert features.dtype == dtype and torch.equal(features, images.flatten(1).to(dtype))


def test_a_custom_extractor_is_in_eval_mode_without_gradients(tmp_path):
    module = Dropping()
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.script(module.train()), str(tmp_path / "a.pt"))
    extractor = Custom(path=str(tmp_path / "a.pt"))
    extractor.prepare("cpu")
    images = pictures(4, 1, 4, 4)
    features = extractor(images)
    assert torch.equal(features, images.flatten(1).float() + 1)
    assert not features.requires_grad


def test_invalid_custom_files_are_reported_in_one_line(tmp_path):
    path = tmp_path / "a.pt"
    assert error_of(lambda: Custom(path=str(path))) == (
        f"path={path}: file not found; save a TorchScript module there with torch.jit.save"
    )
    path.write_bytes(b"not an archive")
    message = error_of(lambda: Custom(path=str(path)).prepare("cpu"))
    assert message.startswith(f"extractor.path={path}: cannot be loaded as TorchScript (")
    assert message.endswith("); write it again with torch.jit.save")
    extractor = custom(path, 3)
    message = error_of(lambda: extractor.output_sizes((1, 9, 9), "cpu"))
    assert message.startswith(
        f"extractor.path={path}: fails on uint8 images of shape (1, 1, 9, 9): "
    )
    assert "to have 3 channels, but got 1 channels instead" in message
    three = returning(path, Three())
    assert error_of(lambda: three(pictures(2, 1, 4, 4))) == (
        f"extractor.path={path}: must return a tensor of features, or a tuple of features and "
        "logits"
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

    digest = hashlib.sha256(bomb.read_bytes()).hexdigest()
    assert error_of(lambda: Inception(weights=str(bomb))) == (
        f"weights={bomb}: is not the published file of inception-v3-compat: its sha256 is "
        f"{digest[:12]}..., not 6726825d0af5...; fetch it from https://github.com/toshas/"
        "torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
    )
    assert error_of(lambda: CLIP(weights=str(bomb))).startswith(
        f"weights={bomb}: is not the published file of clip-vit-b-32: its sha256 is {digest[:12]}"
    )
    assert not (tmp_path / "ran").exists()
    with pytest.raises(RuntimeError, match="Invalid magic number"):  # the payload has run by then
        FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(bomb))
    assert (tmp_path / "ran").exists()


def test_weights_are_hashed_again_when_they_are_loaded(tmp_path, bomb, monkeypatch):
    monkeypatch.setattr(Inception, "sha256", hashlib.sha256(bomb.read_bytes()).hexdigest())
    extractor = Inception(weights=str(bomb))
    bomb.write_bytes(bomb.read_bytes() + b" ")
    assert error_of(lambda: extractor.prepare("cpu")).startswith(
        f"extractor.weights={bomb}: is not"
    )
    assert not (tmp_path / "ran").exists()


def test_cached_downloads_are_hashed(tmp_path, bomb, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / bomb.name
    path.write_bytes(bomb.read_bytes())
    message = error_of(lambda: Inception().prepare("cpu"))
    assert message.startswith(f"extractor.weights={path}: is not the published file")
    assert message.endswith("; remove it: it is downloaded anew")
    assert not (tmp_path / "ran").exists()


def test_a_failed_download_is_reported_with_a_remedy(tmp_path, monkeypatch):
    def fail(url, path, hash_prefix):
        assert path == str(tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")
        assert hash_prefix == Inception.sha256 and len(hash_prefix) == 64
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert error_of(lambda: Inception().prepare("cpu")) == (
        "extractor.weights: the download of https://github.com/toshas/torch-fidelity/releases/"
        "download/v0.2.0/weights-inception-2015-12-05-6726825d.pth failed (<urlopen error "
        "[Errno -3] Temporary failure in name resolution>); fetch it on another machine and add "
        "extractor.weights=path"
    )


def test_an_unavailable_dinov2_is_reported_with_a_remedy(monkeypatch):
    def fail(repository, name):
        assert (repository, name) == ("facebookresearch/dinov2", "dinov2_vits14")
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load", fail)
    assert error_of(lambda: DINOv2(size="s").prepare("cpu")) == (
        "extractor=dinov2-vit-s-14: cannot be loaded from torch.hub (no network); copy "
        f"{torch.hub.get_dir()} from a machine that has it, or use another extractor"
    )


def test_the_hash_of_dinov2_is_of_its_weights(monkeypatch):
    def stub_network(value):
        net = nn.Sequential(nn.AvgPool2d(224), nn.Flatten(), nn.BatchNorm1d(3))
        nn.init.constant_(net[2].bias, value)
        return net

    hashes = []
    for value in (0.0, 0.0, 1.0):
        monkeypatch.setattr(torch.hub, "load", lambda *_, value=value: stub_network(value))
        extractor = DINOv2()
        extractor.prepare("cpu")
        hashes.append(extractor.sha256)
        grey = extractor(torch.full((2, 1, 5, 5), 255, dtype=torch.uint8))
        expected = torch.tensor([[(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]])
        torch.testing.assert_close(grey, (expected + value).expand(2, 3), atol=1e-3, rtol=0)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Path of an Inception state dict with random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        net = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(net.state_dict(), path)
    return path


def test_inception_equals_torch_fidelity(untrained, monkeypatch):
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
    outputs = extractor.outputs(images)
    assert torch.equal(outputs["features"], features) and torch.equal(outputs["logits"], logits)
    assert extractor.output_sizes((1, 8, 8), "cpu") == (2048, 1008)
    assert torch.equal(extractor(images[:, :1]), direct(images[:, :1].repeat(1, 3, 1, 1))[0])
    assert error_of(lambda: extractor.output_sizes((2, 8, 8), "cpu")) == (
        "extractor=inception-v3-compat: requires images of 1 or 3 channels, these have 2; use "
        "extractor=pixels"
    )


def test_inception_layers_are_the_defaults_of_torch_fidelity():
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Theirs

    assert Theirs.get_default_feature_layer_for_metric("fid") == Inception._layers[0]
    assert Theirs.get_default_feature_layer_for_metric("isc") == Inception._layers[1]


# options


def test_options_are_keyword_only_and_checked():
    assert check({"weights": None}, Inception, "extractor") == {"weights": None}
    assert check({}, Pixels, "extractor") == {}
    assert check({"path": "a.pt"}, Custom, "extractor") == {"path": "a.pt"}
    assert error_of(lambda: check({}, Custom, "extractor")) == (
        "extractor.path: is missing; add extractor.path=..."
    )
    message = error_of(lambda: check({"size": "xl"}, DINOv2, "extractor"))
    assert message.startswith("extractor.size=xl: unknown choice")
    message = error_of(lambda: check({"model": "rn51"}, CLIP, "extractor"))
    assert message.startswith("extractor.model=rn51: unknown choice; did you mean 'rn50'?")


def test_model_names_are_those_of_torch_fidelity():
    from typing import get_args

    from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIPS
    from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA as DINOS

    from ddpm.metrics.pretrained import ClipModel

    models = get_args(ClipModel)
    assert {CLIP(model=model).name for model in models} == set(CLIPS)
    assert all(CLIP(model=m).sha256 == CLIPS[f"clip-{m}"]["hash"] for m in models)
    assert {DINOv2(size=size).name for size in ("s", "b", "l", "g")} == set(DINOS)
