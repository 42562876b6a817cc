"""Extractors: what turns images into the features that fidelity is measured in."""

from __future__ import annotations

import hashlib
import sys
import warnings
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm.errors import ConfigError, require
from ddpm.fidelity.images import file_sha256

_TF1 = "bilinear without antialiasing, as in TensorFlow 1, to {}"
ClipModel = Literal[
    "rn50", "rn101", "rn50x4", "rn50x16", "rn50x64",
    "vit-b-32", "vit-b-16", "vit-l-14", "vit-l-14-336px",
]  # fmt: skip


class Extractor(ABC):
    """Uint8 images (B, C, H, W) to features (B, D), and to class logits (B, K) where it has them.

    What can be refused without the weights is refused when it is made; :meth:`prepare` loads
    them, and is called before anything else. The features of an image must not depend on the
    batch that it is in.
    """

    name: str
    """What it is called beside a number."""
    resize: str
    """What it does to the sizes of images, in words."""
    sha256: str
    """Of what determines the features, mostly the file of weights; known once prepared."""

    @abstractmethod
    def prepare(self, device: torch.device | str) -> None:
        """Load what is needed onto ``device``.

        Raises:
            ConfigError: weights that cannot be had.
        """

    @abstractmethod
    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features and logits of images on the device."""

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """``features`` (B, D), and ``logits`` (B, K) where there are, as float32 or float64.

        Args:
            images: uint8 (B, C, H, W) on the device of :meth:`prepare`.

        Raises:
            ConfigError: images that it cannot take, or what it gives is no such thing.
        """
        assert images.dtype == torch.uint8 and images.ndim == 4, (images.dtype, images.shape)
        features, logits = self._extract(images)
        found = {"features": features} | ({} if logits is None else {"logits": logits})
        for what, values in found.items():
            good = values.ndim == 2 and len(values) == len(images) and values.is_floating_point()
            if not good:
                shape = f"{values.dtype} of shape {tuple(values.shape)}".removeprefix("torch.")
                problem = f"gives {what} in {shape} for {len(images)} images; they must be floats"
                raise ConfigError("extractor", self.name, f"{problem} of shape (images, {what})")
        double = torch.float64
        return {k: v if v.dtype == double else v.float() for k, v in found.items()}

    def __call__(self, images: Tensor) -> Tensor:
        """The features alone; see :meth:`outputs`."""
        return self.outputs(images)["features"]

    def widths(self, shape: tuple[int, ...], device: torch.device | str) -> tuple[int, int | None]:
        """How many features and how many logits, if any, it has for images (C, H, W).

        It tries a black image, so what it cannot take is told before there is any work.
        """
        found = self.outputs(torch.zeros(1, *shape, dtype=torch.uint8, device=device))
        logits = found.get("logits")
        return found["features"].shape[1], None if logits is None else logits.shape[1]

    def described(self) -> dict[str, Any]:
        """Name and hash."""
        return {"name": self.name, "sha256": self.sha256}


class Pixels(Extractor):
    """The pixels themselves, divided by 255: for small images, and without any download."""

    name = "pixels"
    resize = "none"
    sha256 = hashlib.sha256(b"pixels: channels, rows, columns; divided by 255").hexdigest()

    def prepare(self, device: torch.device | str) -> None:
        """There is nothing to load."""

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return images.flatten(1).float() / 255, None


class Custom(Extractor):
    """A TorchScript file of the user's own, from uint8 (B, C, H, W) to features (B, D).

    It may give a tuple of features and class logits (B, K) instead. Such a file is code that is
    run, so it is trusted as the command line is: use none that came from elsewhere.

    Args:
        path: what ``torch.jit.save`` wrote.
    """

    name = "custom"
    resize = "its own"

    def __init__(self, *, path: str) -> None:
        self._path = Path(path).expanduser()
        problem = "there is no such file; save a TorchScript module there, with torch.jit.save"
        require(self._path.is_file(), "path", path, problem)
        self.sha256 = file_sha256(self._path, "path")

    def prepare(self, device: torch.device | str) -> None:
        """Load the file."""
        try:
            with warnings.catch_warnings(action="ignore"):
                self._module = torch.jit.load(str(self._path), map_location=device).eval()
        except Exception as error:  # what is no archive, or one of another kind
            problem = f"cannot be loaded as TorchScript ({_reason(error)}); write it anew with"
            where = str(self._path)
            raise ConfigError("extractor.path", where, f"{problem} torch.jit.save") from error

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            found = self._module(images)
        except RuntimeError as error:
            shape = tuple(images.shape)
            problem = f"fails on uint8 images of shape {shape}: {_reason(error)}"
            raise ConfigError("extractor.path", str(self._path), problem) from error
        parts = found if isinstance(found, tuple) else (found,)
        if len(parts) not in (1, 2) or not all(isinstance(part, Tensor) for part in parts):
            problem = "must give a tensor of features, or a tuple of features and logits"
            raise ConfigError("extractor.path", str(self._path), problem)
        return parts[0], parts[1] if len(parts) == 2 else None


class _Network(Extractor):
    """A network of torch-fidelity's, which sees colour: grey is repeated to three channels."""

    _layers: tuple[str, ...]
    _module: nn.Module

    def _load(self, device: torch.device | str, **options: Any) -> None:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

        made = FEATURE_EXTRACTORS_REGISTRY[self.name](self.name, list(self._layers), **options)
        self._module = made.requires_grad_(False).eval().to(device)

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        channels = images.shape[1]
        problem = f"takes images of 1 or 3 channels, these have {channels}; use extractor=pixels"
        require(channels in (1, 3), "extractor", self.name, problem)
        found = self._module(images.expand(-1, 3, -1, -1))
        return found[0], found[1] if len(found) == 2 else None


class _Published(_Network):
    """A network whose one file of weights is known by its sha256.

    torch-fidelity unpickles such files without any safeguard, so none is handed over, neither
    the user's nor one found where downloads lie, before its hash was compared.
    """

    def __init__(self, weights: str | None) -> None:
        self._weights = None if weights is None else Path(weights).expanduser()
        if self._weights is not None:
            require(self._weights.is_file(), "weights", weights, "there is no such file")
            self._verify(self._weights, "weights", f"fetch it from {self._source()[0]}")

    @abstractmethod
    def _source(self) -> tuple[str, str]:
        """The URL of the weights, and the name under which torch-fidelity keeps them."""

    def prepare(self, device: torch.device | str) -> None:
        """Download the weights, if they are neither given nor there yet, and load them."""
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
            problem = f"the download of {url} failed ({_reason(error)}); fetch it on another"
            remedy = "machine and add extractor.weights=path"
            raise ConfigError("extractor.weights", None, f"{problem} {remedy}") from error
        return path

    def _verify(self, path: Path, key: str, remedy: str) -> None:
        found = file_sha256(path, key)
        problem = (
            f"is not the published file of {self.name}: its sha256 is {found[:12]}..., not "
            f"{self.sha256[:12]}...; {remedy}"
        )
        require(found == self.sha256, key, str(path), problem)


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
    """The image half of CLIP (Radford et al. 2021, arXiv 2103.00020), as torch-fidelity has it.

    Args:
        model: which of the published networks.
        weights: its file; null = it is downloaded.
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
    """DINOv2 (Oquab et al. 2023, arXiv 2304.07193), as torch-fidelity has it.

    torch.hub fetches the network's code and its weights from their authors, and runs that code:
    neither is pinned. The hash is that of the weights which came.

    Args:
        size: small, base, large or giant.
    """

    resize = _TF1.format("224x224")
    _layers = ("dinov2",)

    def __init__(self, *, size: Literal["s", "b", "l", "g"] = "l") -> None:
        self.name = f"dinov2-vit-{size}-14"

    def prepare(self, device: torch.device | str) -> None:
        """Have torch.hub fetch what is not there yet, and load it."""
        try:
            with redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):
                self._load(device)
        except Exception as error:  # no network, no space, a changed repository: any error at all
            problem = f"cannot be had from torch.hub ({_reason(error)}); copy {torch.hub.get_dir()}"
            remedy = "from a machine that has it, or take another extractor"
            raise ConfigError("extractor", self.name, f"{problem} {remedy}") from error
        digest = hashlib.sha256()
        for name, values in sorted(self._module.state_dict().items()):
            digest.update(name.encode())
            digest.update(values.cpu().flatten().view(torch.uint8).numpy())
        self.sha256 = digest.hexdigest()


def _reason(error: BaseException) -> str:
    """The last line of what an error says: TorchScript puts a trace before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class Auto:
    """No extractor, but the choice of one: what suits the images.

    Inception sees objects in photographs; of tiny grey images it says little.
    """

    _TINY = 32  # pixels a side

    def suiting(self, shape: tuple[int, ...]) -> Extractor:
        """:class:`Pixels` for grey images (C, H, W) of up to 32x32, else :class:`Inception`."""
        channels, *sides = shape
        tiny = channels == 1 and max(sides) <= self._TINY
        return Pixels() if tiny else Inception()
