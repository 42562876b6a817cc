"""The parts of an evaluation that the commands cannot show."""

from types import SimpleNamespace

import pytest

from ddpm import instantiate
from ddpm.distributed.batches import Share
from ddpm.distributed.stopping import GivenUpError
from ddpm.evaluation.options import answers
from ddpm.evaluation.results import Findings, read


def process(rank, world):
    return SimpleNamespace(process_index=rank, num_processes=world)


@pytest.mark.parametrize(
    ("count", "size", "world", "most"), [(10, 3, 2, 2), (10, 3, 3, 2), (2, 4, 3, 1), (9, 3, 1, 3)]
)
def test_processes_share_whole_batches_and_ask_equally_often(count, size, world, most):
    asked, seen = [], []
    for rank in range(world):
        asks = []
        share = Share(process(rank, world), count, size, 5, lambda a=asks: a.append(None) or False)
        for batch in share.batches():
            seen += batch
            for _ in range(5):
                share.tick()
        share.finish()
        assert share.num_batches == len(share.batches()) and share.calls == 5 * share.num_batches
        asked.append(len(asks))
    assert seen == list(range(count)) and set(asked) == {5 * most}


def test_told_to_stop_all_processes_give_up_after_as_many_calls():
    for rank in range(2):
        asks = []
        share = Share(process(rank, 2), 2, 2, 3, lambda a=asks: a.append(None) or len(a) == 2)
        with pytest.raises(GivenUpError):  # the first process has no batch, and answers
            for _ in share.batches():
                share.tick()
                share.tick()
            share.finish()
        assert len(asks) == 2


def test_what_is_written_can_be_read_back(tmp_path):
    found = Findings()
    found.add("fid", 1.5, None, {"seed": 3}, num_samples=5000)
    found.add("val_loss", 0.25, 0.01, {"step": 4})
    found.add("recall", 0.5, None, {}, num_samples=50_000)
    found.warn("a", "b", "a")
    found.write(tmp_path, request={"x": 1})
    metrics, warnings, content = read(tmp_path)
    assert metrics == found.metrics and warnings == ["a", "b"] and content["request"] == {"x": 1}
    assert found.numbers == {"fid_5k": 1.5, "val_loss": 0.25, "recall": 0.5}
    assert [metric.higher_is_better for metric in metrics] == [False, False, True]
    assert found.of("fid") == 1.5 and found.of("loss") == 0.25


def test_what_answers_what_was_asked_for():
    asked = {"fid": "fid", "precision": "prc", "val_bpd": "bpd", "bpd": "bpd", "isc": "isc"}
    assert all(answers(metric, wanted) for metric, wanted in asked.items())
    assert not any(answers(metric, "prc") for metric in ("recall", "f_score", "prc"))
    assert not answers("val_loss_q0", "loss")


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 8, 8), "pixels"),
        ((1, 32, 32), "pixels"),
        ((1, 33, 8), "inception-v3-compat"),
        ((3, 8, 8), "inception-v3-compat"),
    ],
)
def test_auto_takes_pixels_for_tiny_grey_images_alone(shape, name):
    assert instantiate.extractor({"_target_": "ddpm.metrics.Auto"}, shape).name == name
