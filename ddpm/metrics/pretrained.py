"""Pretrained extractors: the networks of torch-fidelity with their published weights."""

from __future__ import annotations

import hashlib
import sys
import warnings
from abc import abstractmethod
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm.errors import ConfigError, require
from ddpm.memory import is_out_of_memory
from ddpm.metrics.extractors import Extractor, Pixels, reason
from ddpm.metrics.image_sources import file_sha256

_TF1 = "bilinear without antialiasing, as in TensorFlow 1, to {}"
ClipModel = Literal[
    "rn50", "rn101", "rn50x4", "rn50x16", "rn50x64",
    "vit-b-32", "vit-b-16", "vit-l-14", "vit-l-14-336px",
]  # fmt: skip


class _Network(Extractor):
    """A network of torch-fidelity for colour images; grey is repeated to three channels."""

    _layers: tuple[str, ...]
    _module: nn.Module

    def _load(self, device: torch.device | str, **options: Any) -> None:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

        made = FEATURE_EXTRACTORS_REGISTRY[self.name](self.name, list(self._layers), **options)
        self._module = made.requires_grad_(False).eval().to(device)

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        channels = images.shape[1]
        problem = f"requires images of 1 or 3 channels, these have {channels}; use extractor=pixels"
        require(channels in (1, 3), "extractor", self.name, problem)
        outputs = self._module(images.expand(-1, 3, -1, -1))
        return outputs[0], outputs[1] if len(outputs) == 2 else None


class _Published(_Network):
    """A network with a single file of weights, whose sha256 is published.

    torch-fidelity unpickles such files without any safeguard, so the hash is compared first, both
    of files of the user and of downloads.
    """

    def __init__(self, weights: str | None) -> None:
        self._weights = None if weights is None else Path(weights)
        if self._weights is not None:
            require(self._weights.is_file(), "weights", weights, "file not found")
            self._verify(self._weights, "weights", f"fetch it from {self._source()[0]}")

    @abstractmethod
    def _source(self) -> tuple[str, str]:
        """Return the URL of the weights, and their file name in torch-fidelity."""

    def prepare(self, device: torch.device | str) -> None:
        """Load the weights, after a download if there is neither a path nor an earlier download."""
        path, remedy = self._weights, f"fetch it from {self._source()[0]}"
        if path is None:
            path, remedy = self._downloaded(), "remove it: it is downloaded anew"
        self._verify(path, "extractor.weights", remedy)
        with warnings.catch_warnings(action="ignore"):
            self._load(device, feature_extractor_weights_path=str(path))

    def _downloaded(self) -> Path:
        url, name = self._source()
        path = Path(torch.hub.get_dir()) / "checkpoints" / name
        if path.is_file():
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=self.sha256)
        except Exception as error:  # no network, no space, another file: any error at all
            problem = f"the download of {url} failed ({reason(error)}); fetch it on another"
            remedy = "machine and add extractor.weights=path"
            raise ConfigError("extractor.weights", None, f"{problem} {remedy}") from error
        return path

    def _verify(self, path: Path, key: str, remedy: str) -> None:
        sha256 = file_sha256(path, key)
        problem = (
            f"is not the published file of {self.name}: its sha256 is {sha256[:12]}..., not "
            f"{self.sha256[:12]}...; {remedy}"
        )
        require(sha256 == self.sha256, key, str(path), problem)


class Inception(_Published):
    """torch-fidelity's Inception v3, the network of the FID in papers: 2048 features, 1008 logits.

    Args:
        weights: the file weights-inception-2015-12-05-6726825d.pth; null = it is downloaded.
    """

    name = "inception-v3-compat"
    resize = _TF1.format("299x299")
    sha256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    _layers = ("2048", "logits_unbiased")

    def __init__(self, *, weights: str | None = None) -> None:
        super().__init__(weights)

    def _source(self) -> tuple[str, str]:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        return URL_INCEPTION_V3, URL_INCEPTION_V3.rpartition("/")[2]


class CLIP(_Published):
    """Image encoder of CLIP (Radford et al. 2021, arXiv 2103.00020), as in torch-fidelity.

    Args:
        model: name of the published network.
        weights: path of the file; null = it is downloaded.
    """

    resize = _TF1.format("the size that the network was trained at")
    _layers = ("clip",)

    def __init__(self, *, model: ClipModel = "vit-b-32", weights: str | None = None) -> None:
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA

        self.name = f"clip-{model}"
        self.sha256 = MODEL_METADATA[self.name]["hash"]
        super().__init__(weights)

    def _source(self) -> tuple[str, str]:
        from torch_fidelity.feature_extractor_clip import MODEL_URLS

        return MODEL_URLS[self.name], f"{self.name}-{self.sha256}.pt"


class DINOv2(_Network):
    """DINOv2 (Oquab et al. 2023, arXiv 2304.07193), as in torch-fidelity.

    torch.hub downloads code and weights from their authors and runs the code; neither is pinned.
    The hash is that of the downloaded weights.

    Args:
        size: small, base, large or giant.
    """

    resize = _TF1.format("224x224")
    _layers = ("dinov2",)

    def __init__(self, *, size: Literal["s", "b", "l", "g"] = "l") -> None:
        self.name = f"dinov2-vit-{size}-14"

    def prepare(self, device: torch.device | str) -> None:
        """Load code and weights through torch.hub, which downloads them if necessary."""
        try:
            with redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):
                self._load(device)
        except Exception as error:  # no network, no space, a changed repository: any error at all
            if is_out_of_memory(error):
                raise
            problem = (
                f"cannot be loaded from torch.hub ({reason(error)}); copy {torch.hub.get_dir()}"
            )
            remedy = "from a machine that has it, or use another extractor"
            raise ConfigError("extractor", self.name, f"{problem} {remedy}") from error
        digest = hashlib.sha256()
        for name, values in sorted(self._module.state_dict().items()):
            digest.update(name.encode())
            digest.update(values.cpu().flatten().view(torch.uint8).numpy())
        self.sha256 = digest.hexdigest()


class Auto:
    """Selects an extractor from the shape of the images.

    Inception recognizes objects in photographs and is not informative for tiny grey images.
    """

    _TINY = 32  # pixels per side

    def choose(self, shape: tuple[int, ...]) -> Extractor:
        """Return :class:`Pixels` for grey (C, H, W) up to 32x32, else :class:`Inception`."""
        channels, *sides = shape
        tiny = channels == 1 and max(sides) <= self._TINY
        return Pixels() if tiny else Inception()
