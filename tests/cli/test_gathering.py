"""Gathering of results on the main process."""

import threading
from types import SimpleNamespace

import pytest
import torch

from ddpm import metrics
from ddpm.distributed import consensus, main_process
from ddpm.distributed.sharding import Shard
from ddpm.distributed.stopping import GivenUpError
from ddpm.evaluation import sample_metrics
from ddpm.metrics import Features, Moments, Statistics


class Group:
    """Processes as threads of this one, with the exchanges that gathering uses."""

    def __init__(self, world, monkeypatch):
        self.world, self.local = world, threading.local()
        self.barrier, self.slots, self.sent = threading.Barrier(world), [None] * world, []
        self.boxes = [[] for _ in range(world)]
        self.arrived = threading.Condition()
        monkeypatch.setattr(main_process, "gather_object", self.gather)
        monkeypatch.setattr(consensus, "broadcast_object_list", self.broadcast)
        monkeypatch.setattr(main_process, "dist", SimpleNamespace(send=self.send, recv=self.recv))

    def gather(self, parts):
        self.slots[self.local.rank] = parts
        self.barrier.wait()
        whole = [each for slot in self.slots for each in slot]
        self.barrier.wait()
        return whole

    def broadcast(self, values):
        return [self.gather(values)[0]]

    def send(self, values, dst):
        assert dst == 0
        with self.arrived:
            self.sent.append(values.numel() * values.element_size())
            self.boxes[self.local.rank].append(values.clone())
            self.arrived.notify_all()

    def recv(self, into, src):
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.boxes[src], timeout=20)
            into.copy_(self.boxes[src].pop(0))

    def run(self, work):
        """Return the results of ``work(accelerator)`` on all processes."""
        results = [None] * self.world

        def one(rank):
            self.local.rank = rank
            results[rank] = work(self.process(rank))

        threads = [threading.Thread(target=one, args=[rank]) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        return results

    def process(self, rank):
        def reduce(values, reduction):
            return torch.stack(self.gather([values])).sum(0)

        return SimpleNamespace(
            process_index=rank, num_processes=self.world, is_main_process=rank == 0,
            device=torch.device("cpu"), reduce=reduce,
        )  # fmt: skip


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_rows_are_gathered_in_order_and_in_chunks(monkeypatch, world, count):
    monkeypatch.setattr(main_process, "_CHUNK", 24)  # three rows
    group, whole = Group(world, monkeypatch), torch.arange(2.0 * count).reshape(count, 2)

    def work(accelerator):
        own = whole[Shard(accelerator, count, 2).indices]
        return main_process.to_main(accelerator, own if len(own) else torch.zeros(0))

    first, *others = group.run(work)
    assert torch.equal(first, whole) and others == [None] * (world - 1)
    assert max(group.sent, default=0) <= 24


@pytest.mark.parametrize("limit", [0, 2**30])
def test_only_the_main_process_has_all_features(monkeypatch, limit):
    count, dim = 3000, 6
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(count, dim, generator=generator) + 100.0
    group, stored = Group(2, monkeypatch), {}

    def work(accelerator):
        collector = sample_metrics.FeatureCollector(
            accelerator, count, dim, has_logits=False, statistics_only=True, limit=limit
        )
        shard = Shard(accelerator, count, 32)
        for batch in shard.batches():
            collector.add(Features(torch.tensor(batch), whole[batch]))
        stored[accelerator.process_index] = sum(map(len, collector.batches))
        return collector.collect()

    first, other = group.run(work)
    assert other.features is None and other.moments is None
    if limit:  # few features: all of them, and the number to the last digit
        assert torch.equal(first.features.features, whole) and first.moments is None
        return
    assert stored == {0: 32, 1: 0}  # the first batch, for the report
    assert max(group.sent) <= dim * dim * 8
    ours, theirs = first.moments.statistics(), Statistics.from_features(whole)
    assert ours.mu.dtype == theirs.mu.dtype and ours.num_images == count
    exact = whole.double()
    assert torch.equal(torch.from_numpy(ours.mu), exact.mean(0).float())
    assert torch.allclose(torch.from_numpy(ours.sigma), torch.cov(exact.T), rtol=1e-12, atol=0)
    # torch-fidelity's mean is a sum in float32: of 3000 features at 100 it is off by 2e-6
    other = metrics.Statistics.from_features(
        whole[torch.randperm(count, generator=generator)] * 1.01
    )
    assert metrics.fid(ours, other).values["fid"] == pytest.approx(
        metrics.fid(theirs, other).values["fid"], rel=1e-4
    )


def test_logits_are_gathered_with_features(monkeypatch):
    group, logits = Group(2, monkeypatch), torch.arange(8.0).reshape(4, 2)

    def work(accelerator):
        indices = Shard(accelerator, 4, 2).indices
        own = Features(torch.tensor(indices), logits[indices] * 2, logits[indices])
        return main_process.features_to_main(accelerator, own, has_logits=True)

    first, other = group.run(work)
    assert other is None and torch.equal(first.logits, logits)
    assert torch.equal(first.features, logits * 2) and first.indices.tolist() == [0, 1, 2, 3]


def test_moments_of_features_with_a_large_mean_are_accurate():
    features = torch.randn(5000, 4, generator=torch.Generator().manual_seed(1)).double() + 1e6
    moments = Moments(4)
    for batch in features.split(64):
        moments.add(batch)
    assert torch.allclose(
        torch.from_numpy(moments.statistics().sigma), torch.cov(features.T), rtol=1e-9, atol=1e-9
    )


def test_the_main_process_works_while_the_others_check_for_a_stop(monkeypatch):
    monkeypatch.setattr(main_process, "_SECONDS", 0.01)
    group, worked, done = Group(2, monkeypatch), [], threading.Event()

    def work():
        worked.append(None)
        assert done.wait(20)
        return 7

    def stopping(counts=[]):  # noqa: B006
        counts.append(None)
        if len(counts) == 6:
            done.set()
        return False

    assert group.run(lambda each: main_process.on_main(each, work, stopping)) == [7, 7]
    assert worked == [None]


def test_a_stop_ends_all_processes_without_waiting_for_the_work(monkeypatch):
    monkeypatch.setattr(main_process, "_SECONDS", 0.01)
    group, done = Group(2, monkeypatch), threading.Event()

    def work(accelerator):
        with pytest.raises(GivenUpError):
            main_process.on_main(accelerator, lambda: done.wait(20), lambda: True)
        return True

    assert group.run(work) == [True, True]
    done.set()


def test_an_error_of_the_work_is_raised_on_the_main_process(monkeypatch):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        main_process.on_main(Group(1, monkeypatch).process(0), fail)
