"""Shared work, stored results and options of an evaluation, without a command."""

from types import SimpleNamespace

import pytest

from ddpm import instantiate
from ddpm.distributed.sharding import Shard
from ddpm.distributed.stopping import GivenUpError
from ddpm.evaluation.options import matches_metric
from ddpm.evaluation.results import EvaluationResult, read


def process(rank, world):
    return SimpleNamespace(process_index=rank, num_processes=world)


@pytest.mark.parametrize(
    ("count", "size", "world", "most"), [(10, 3, 2, 2), (10, 3, 3, 2), (2, 4, 3, 1), (9, 3, 1, 3)]
)
def test_processes_share_whole_batches_and_check_equally_often(count, size, world, most):
    numbers, seen = [], []
    for rank in range(world):
        checks = []
        stopping = lambda c=checks: c.append(None) or False  # noqa: E731
        shard = Shard(process(rank, world), count, size, calls=5, stopping=stopping)
        for batch in shard.batches():
            seen += batch
            for _ in range(5):
                shard.tick()
        shard.finish()
        assert shard.calls == 5 * len(shard.batches()) and shard.most_batches == most
        numbers.append(len(checks))
    assert seen == list(range(count)) and set(numbers) == {5 * most}


def test_a_stop_ends_all_processes_after_equally_many_calls():
    for rank in range(2):
        checks = []
        stopping = lambda c=checks: c.append(None) or len(c) == 2  # noqa: E731
        shard = Shard(process(rank, 2), 2, 2, calls=3, stopping=stopping)
        with pytest.raises(GivenUpError):  # the first process has no batch, but checks as well
            for _ in shard.batches():
                shard.tick()
                shard.tick()
            shard.finish()
        assert len(checks) == 2


def test_results_can_be_read_back(tmp_path):
    result = EvaluationResult()
    result.add("fid", 1.5, None, {"seed": 3}, num_samples=5000)
    result.add("val_loss", 0.25, 0.01, {"step": 4})
    result.add("recall", 0.5, None, {}, num_samples=50_000)
    result.warn("a", "b", "a")
    result.write(tmp_path, request={"x": 1})
    metrics, warnings, content = read(tmp_path)
    assert metrics == result.metrics and warnings == ["a", "b"] and content["request"] == {"x": 1}
    assert result.numbers == {"fid_5k": 1.5, "val_loss": 0.25, "recall": 0.5}
    assert [metric.higher_is_better for metric in metrics] == [False, False, True]
    assert result.value("fid") == 1.5 and result.value("loss") == 0.25


def test_the_main_number_of_a_metric():
    numbers = {"fid": "fid", "precision": "prc", "val_bpd": "bpd", "bpd": "bpd", "isc": "isc"}
    assert all(matches_metric(name, metric) for name, metric in numbers.items())
    assert not any(matches_metric(name, "prc") for name in ("recall", "f_score", "prc"))
    assert not matches_metric("val_loss_q0", "loss")


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 8, 8), "pixels"),
        ((1, 32, 32), "pixels"),
        ((1, 33, 8), "inception-v3-compat"),
        ((3, 8, 8), "inception-v3-compat"),
    ],
)
def test_auto_selects_pixels_for_tiny_grey_images_only(shape, name):
    assert instantiate.extractor({"_target_": "ddpm.metrics.Auto"}, shape).name == name
