"""Metrics computed by torch-fidelity, with an extractor of ddpm."""

import warnings

import numpy as np
import torch
from torch import nn
from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor

from ddpm.metrics import Custom


class ExtractorAdapter(FeatureExtractorBase):
    """Feature extractor of torch-fidelity that calls ``ExtractorAdapter.extractor``."""

    extractor = None

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        outputs = ExtractorAdapter.extractor.outputs(images)
        return tuple(outputs[name] for name in self.features_list)


register_feature_extractor("ddpm", ExtractorAdapter)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.pixels[index]


def reference_metrics(extractor, samples, reference, **options):
    """Return the metrics of torch-fidelity for uint8 (N, C, H, W), without its cache."""
    ExtractorAdapter.extractor = extractor
    return calculate_metrics(
        input1=Pictures(samples),
        input2=Pictures(reference),
        feature_extractor="ddpm",
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        **options,
    )


class Convolutions(nn.Module):
    """A small network whose order of summation may depend on the batch size."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 48, 3, stride=2)
        self.head = nn.Linear(48, 7)

    def forward(self, images: torch.Tensor):
        x = torch.relu(self.first(images.float() / 127.5 - 1))
        features = torch.relu(self.second(x)).mean((2, 3))
        return features, 30 * self.head(features)


class FeaturesOnly(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images)[0]


def custom(path, channels, logits=True):
    """Return a custom extractor of a file that is written to ``path``."""
    torch.manual_seed(0)
    net = Convolutions(channels)
    save(net if logits else FeaturesOnly(net), path)
    extractor = Custom(path=str(path))
    extractor.prepare("cpu")
    return extractor


def save(module, path):
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(module.eval()), str(path))


def pictures(count, *shape, seed=0, dark=0):
    """Return smooth noise, uint8 (count, *shape), darker by ``dark``."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (count, *shape)) * 0.5 + rng.integers(0, 120, (count, 1, 1, 1))
    return torch.from_numpy((values - dark).clip(0, 255).astype(np.uint8))
