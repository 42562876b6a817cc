import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

import ddpm.data
from ddpm.data import Digits
from ddpm.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


@pytest.mark.parametrize("name", ["digits", "cifar", "folder", "sequence"])
def test_each_config_lists_all_options_with_their_defaults(name: str):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    target = config.pop("_target_").removeprefix("ddpm.data.")
    assert target in ddpm.data.__all__
    parameters = inspect.signature(getattr(ddpm.data, target)).parameters
    defaults = {
        key: "???" if parameter.default is parameter.empty else parameter.default
        for key, parameter in parameters.items()
    }
    assert config.pop("val_fraction") == 0.0  # an option of all data nodes, not of the class
    assert list(config.items()) == list(defaults.items())


def test_digits_equal_those_of_scikit_learn_scaled_to_uint8():
    values, labels = load_digits(return_X_y=True)
    data = Digits(class_cond=True)
    assert (len(data), data.shape, data.in_memory) == (1797, (1, 8, 8), True)
    assert (data.num_classes, data.class_names) == (10, list("0123456789"))
    raw, numbers = data.fetch(range(1797), range(1797))
    assert raw.dtype == torch.uint8
    assert np.array_equal(raw.numpy().reshape(1797, 64), np.rint(values * 255 / 16))
    assert raw.max() == 255
    assert np.array_equal(numbers, labels)  # pyright: ignore[reportArgumentType]
    assert data.codec.state() == {"kind": "images", "shape": [1, 8, 8]}
    without = Digits()
    assert (without.num_classes, without.class_names, without.fetch([0], [0])[1]) == (None,) * 3


def test_digits_can_be_resized():
    assert Digits(image_size=8).shape == (1, 8, 8)
    data = Digits(image_size=(16, 32))  # crops the upper and the lower quarter
    raw, _ = data.fetch([0], [0])
    assert raw.shape == (1, 1, 16, 32)
    middle = Digits().fetch([0], [0])[0][0, 0, 2:6].float()
    means = raw[0, 0].reshape(4, 4, 8, 4).float().mean((1, 3))
    assert torch.corrcoef(torch.stack([means.flatten(), middle.flatten()]))[0, 1] > 0.97


@pytest.mark.parametrize("size", [0, -3, (8, 0)])
def test_errors_of_invalid_sizes(size):
    with pytest.raises(ConfigError, match=r"^image_size=.*: must be a positive number of pixels"):
        Digits(image_size=size)


def test_fetched_batches_are_copies():
    data = Digits()
    before = data.fetch([5], [0])[0].clone()
    data.fetch([5], [0])[0].zero_()
    assert torch.equal(data.fetch([5], [0])[0], before)
