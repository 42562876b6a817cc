"""Precision of sampling: contexts, and the check of an automatic choice."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from ddpm.arithmetic import Arithmetic, evaluation_precision, of_evaluation, predictions
from ddpm.data import SequenceCodec
from ddpm.diffusion import GaussianDiffusion, PredNoise, cosine
from ddpm.distributed import devices
from ddpm.distributed.trials import relative_distance
from ddpm.pipeline import build_pipeline
from ddpm.samplers import DDIM

CPU = torch.device("cpu")
SHAPE = (2, 8)


class Network(nn.Module):
    """Returns x times a factor of the precision."""

    def __init__(self, factors):
        super().__init__()
        self.factors, self.calls = factors, []

    def forward(self, x, t, y=None):
        half = torch.is_autocast_enabled("cpu")
        name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[torch.get_autocast_dtype("cpu")]
        precision = name if half else "no"
        self.calls.append((precision, None if y is None else y.tolist()))
        return self.factors[precision] * x


def pipeline_of(network, autocast):
    process = GaussianDiffusion(cosine(num_steps=50), PredNoise())
    codec = SequenceCodec(SHAPE, low=-1.0, high=1.0)
    return build_pipeline(network, process, DDIM(), codec, device=CPU, autocast=autocast)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_context_has_the_precision(precision):
    assert devices.precision_of(Arithmetic(CPU, precision), CPU) == precision


@pytest.mark.parametrize(
    ("factor", "chosen"), [(0.51, "bf16"), (0.9, "no"), (math.nan, "no"), (math.inf, "no")]
)
@pytest.mark.parametrize("classes", [None, [3]])
def test_an_automatic_half_precision_is_kept_if_predictions_are_close(factor, chosen, classes):
    network, arithmetic = Network({"no": 0.5, "bf16": factor}), Arithmetic(CPU, "auto", "bf16")
    pipeline = pipeline_of(network, arithmetic)
    for _ in range(2):  # the second time nothing is checked
        arithmetic.check(pipeline, classes)
    assert arithmetic.precision == chosen
    labels = None if classes is None else [3, 3]
    assert network.calls == [("bf16", labels)] * 3 + [("no", labels)] * 3


@pytest.mark.parametrize("option", ["no", "bf16", "auto"])
def test_a_typed_precision_and_float32_are_not_checked(option):
    network, arithmetic = Network({}), Arithmetic(CPU, option)
    arithmetic.check(pipeline_of(network, arithmetic), None)
    assert network.calls == [] and arithmetic.precision == {"auto": "no"}.get(option, option)


def test_the_first_a_middle_and_the_last_time_of_a_path_are_compared():
    network = Network({"no": 0.5})
    first, middle, last = predictions(pipeline_of(network, nullcontext), 3, None)
    assert first.shape == (3, *SHAPE) and len(network.calls) == 3
    assert first.norm() < middle.norm() < last.norm()  # alpha grows


def test_the_distance_is_relative_and_not_a_number_if_a_value_is_not_finite():
    ones = [torch.ones(3), torch.ones(2, 2)]
    assert relative_distance(ones, ones) == 0
    assert relative_distance([1.1 * each for each in ones], ones) == pytest.approx(0.1)
    assert math.isnan(relative_distance([torch.full((3,), math.nan), ones[1]], ones))
    assert not relative_distance([torch.full((3,), math.inf), ones[1]], ones) <= 1e9


def test_likelihoods_are_evaluated_in_float32_unless_a_precision_is_typed():
    assert evaluation_precision("auto", ["fid"]) == "auto"
    assert evaluation_precision("auto", ["fid", "bpd"]) == evaluation_precision("no", ["fid"])
    assert evaluation_precision("bf16", ["loss"]) == "bf16"
    assert of_evaluation(nullcontext, ["bpd"]) is nullcontext
    changed = of_evaluation(Arithmetic(CPU, "auto", "bf16"), ["bpd"])
    assert isinstance(changed, Arithmetic) and changed.precision == "no"
