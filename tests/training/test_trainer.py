"""The training loop: learning rates, gradients, skipped steps, logs."""

import json
import math
import time

import pytest
import torch
from torch import Tensor, nn

from ddpm.checkpoint_paths import step_of
from ddpm.data import Dataset, ImageCodec
from ddpm.diffusion import DiffusionLoss, GaussianDiffusion, PredNoise, cosine
from ddpm.distributed import devices
from ddpm.errors import ConfigError
from ddpm.training import Trainer, checkpoint
from ddpm.training.checkpoint import CheckpointMetadata
from ddpm.training.loop import TrainingLoop
from ddpm.training.run import Run
from ddpm.training.trainer import TrainerOptions


class Plain(ImageCodec):
    """Codec that does not change the values."""

    kind = None

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float()


class Points(Dataset):
    """Data set of random 2x2 images; item i has the class ``i % num_classes``."""

    class_names, in_memory = None, True

    def __init__(self, count=64, num_classes=None):
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(count, 1, 2, 2, generator=generator)
        self.shape, self.num_classes = (1, 2, 2), num_classes
        self.codec = Plain(self.shape)

    def __len__(self):
        return len(self.values)

    def fetch(self, indices, keys):
        labels = None if self.num_classes is None else torch.tensor(indices) % self.num_classes
        return self.values[torch.tensor(indices)], labels


class Fit(DiffusionLoss):
    """Deterministic loss: squared error between the output of the network and twice the data."""

    def __init__(self, num_steps=4, **options):
        super().__init__(GaussianDiffusion(cosine(num_steps=num_steps), PredNoise(), **options))
        self.calls = []

    def __call__(self, model, x0, t, noise, estimator=None, conditioning=None):
        inputs = {"x0": x0, "t": t, "noise": noise, "estimator": estimator}
        self.calls.append(inputs | dict(conditioning or {}))
        return (model(x0) - 2 * x0).square().flatten(1).mean(1)


class Net(nn.Module):
    null_label = 3

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.constant_(self.layer.bias, -0.25)

    def forward(self, x):
        return self.layer(x)

    def values(self):
        return torch.cat([p.detach().flatten() for p in self.parameters()])


def trainer(loss=None, net=None, data=None, seed=0, **options):
    options = {"lr_warmup": 0, "batch_size": 8, "max_steps": 4, "clip_grad_norm": None, **options}
    loss, options = loss or Fit(), TrainerOptions(**options)
    accumulate = options.first_accumulate
    made = devices.accelerator("cpu", "no", key="precision", accumulate=accumulate)
    parts = net or Net(), loss.diffusion, data or Points()
    training = Trainer(*parts, made, seed, options=options)
    training.loss = loss
    return training


def fit(training, *arguments, **options):
    """Train to the last step and return the last logged loss."""
    return TrainingLoop(training, *arguments, **options).train()


def folder(path):
    made = Run(path)
    made.create("")
    return made


@pytest.fixture
def run(tmp_path):
    return folder(tmp_path / "a")


METADATA = CheckpointMetadata(config={})


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"lr_warmup": 0}, {0: 1, 1: 1, 99: 1}),
        ({"lr_warmup": 4}, {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 1, 5: 1, 99: 1}),
        (
            {"lr_warmup": 0, "lr_decay": "cosine", "max_steps": 10},
            {0: 1, 5: 0.5, 2: (1 + math.cos(math.pi / 5)) / 2, 10: 0, 11: 0},
        ),
        (
            {"lr_warmup": 4, "lr_decay": "cosine", "max_steps": 12},
            {0: 0.2, 3: 0.8, 4: 1, 8: 0.5, 6: (1 + math.cos(math.pi / 4)) / 2, 12: 0, 20: 0},
        ),
        ({"lr_warmup": 20, "lr_decay": "cosine", "max_steps": 10}, {0: 1 / 21, 9: 10 / 21}),
    ],
)
def test_learning_rate(options, rates):
    training = trainer(lr=3e-4, **options)
    for update, share in rates.items():
        assert training.learning_rate(update) == pytest.approx(3e-4 * share, abs=1e-12), update


@pytest.mark.parametrize(
    ("max_steps", "typed", "expected"),
    [(19, None, 0), (100, None, 5), (20_000, None, 1000), (10**6, None, 1000), (100, 70, 70)],
)
def test_warm_up_scales_with_the_run(max_steps, typed, expected):
    training = trainer(lr=1.0, lr_warmup=typed, max_steps=max_steps)
    assert training.warmup_steps == expected
    assert training.learning_rate(0) == pytest.approx(1 / (expected + 1))
    assert training.learning_rate(expected) == 1


def test_resuming_does_not_change_the_warm_up(run):
    fit(trainer(lr_warmup=None, max_steps=40), run, METADATA)
    (newest, *_) = checkpoint.listed(run.path)
    for typed, expected in ((None, 2), (7, 7)):
        again = trainer(lr_warmup=typed, max_steps=4000)
        again.resume(checkpoint.load(newest))
        assert again.warmup_steps == expected


def test_optimizer_uses_the_learning_rate_of_its_step(run):
    training = trainer(lr=1e-2, lr_warmup=2, lr_decay="cosine", max_steps=6, log_every=1)
    used = []
    real = training.optimizer.step
    training.optimizer.step = lambda: (
        used.append(training.optimizer.param_groups[0]["lr"]),
        real(),
    )
    fit(training, run, METADATA)
    assert used == [training.learning_rate(update) for update in range(6)]
    assert used == pytest.approx([record["lr"] for record in run.metrics()])
    assert used[0] == pytest.approx(1e-2 / 3) and used[5] < used[3]


def gradients(run, **options):
    """Train; return the trainer and the gradient of each optimizer step."""
    training = trainer(**options)
    seen = []
    real = training.optimizer.step

    def step():
        if training.accelerator.sync_gradients:
            seen.append(torch.cat([p.grad.flatten() for p in training.network.parameters()]))
            seen[-1] = seen[-1].clone()
        real()

    training.optimizer.step = step
    fit(training, run, METADATA)
    return training, seen


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_gradient_accumulation_gives_the_gradient_of_the_whole_batch(run, tmp_path, accumulate):
    options = {"batch_size": 16, "lr": 1e-2}
    whole, expected = gradients(run, **options)
    other, result = gradients(folder(tmp_path / "b"), accumulate=accumulate, **options)
    assert len(result) == len(expected) == 4
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other.network.values(), whole.network.values(), rtol=0, atol=1e-6)
    assert len(other.loss.calls) == 4 * accumulate and other.num_updates == 4
    torch.testing.assert_close(
        other.ema.model.values(), whole.ema.model.values(), rtol=0, atol=1e-6
    )


def test_the_gradient_is_that_of_the_mean_loss(run):
    training, result = gradients(run, max_steps=1)
    x = torch.cat([call["x0"] for call in training.loss.calls])
    left = 0.5 * x - 0.25 - 2 * x  # output of the initial network minus the target
    expected = torch.stack([(2 * left * x).mean(), (2 * left).mean()])
    torch.testing.assert_close(result[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 1000.0])
def test_clipping(run, tmp_path, share):
    """A gradient above the limit is scaled down to it; the logged norm is that before clipping."""
    _, free = gradients(run, max_steps=1)
    norm = float(free[0].norm())
    limit = share * norm
    other = folder(tmp_path / "b")
    _, clipped = gradients(other, max_steps=1, clip_grad_norm=limit)
    expected = free[0] * min(1.0, share)
    torch.testing.assert_close(clipped[0], expected, rtol=1e-4, atol=0)
    assert run.metrics()[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert other.metrics()[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)


class Breaks(Fit):
    """Loss that is not finite from a step on."""

    def __init__(self, first, value=math.nan):
        super().__init__()
        self.first, self.value = first, value

    def __call__(self, model, x0, t, noise, estimator=None, conditioning=None):
        losses = super().__call__(model, x0, t, noise, estimator, conditioning)
        return losses * self.value if len(self.calls) > self.first else losses


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradient_that_is_not_finite_is_not_applied(run, value, clip):
    training = trainer(
        Breaks(2, value), max_steps=9, lr=0.1, checkpoint_every=1, clip_grad_norm=clip
    )
    with pytest.raises(ConfigError) as caught:
        fit(training, run, METADATA)
    (good, *_) = checkpoint.listed(run.path)
    indices = [index for index, _ in training.loader.order.items(16, 8)]
    dump = json.loads((run.path / "nonfinite-step-00000003.json").read_text())
    assert dump["step"] == 3 and [each["sample"] for each in dump["batch"]] == indices
    steps = training.loss.calls[-1]["t"].tolist()
    assert [each["t"] for each in dump["batch"]] == steps
    assert {each["loss"] for each in dump["batch"]} == {str(value)}
    first = ", ".join(
        f"loss {value} of sample {i} at t={t}" for i, t in zip(indices[:3], steps[:3], strict=True)
    )
    assert str(caught.value) == (
        f"trainer.lr=0.1: the gradient of step 3 is not finite ({first} and 5 more, all in "
        f"{run.path}/nonfinite-step-00000003.json); it was not applied, and the last good "
        f"checkpoint is {good}; lower trainer.lr, or use trainer.precision=bf16 or no, or "
        "trainer.on_nonfinite=skip"
    )
    last = checkpoint.load(good)
    assert last.step == training.step == training.num_updates == 2
    for which, network in (("raw", training.network), ("ema", training.ema.model)):
        for name, value in last.weights(which).items():
            assert torch.equal(value, network.state_dict()[name])
    assert training.ema.state()["step"] == 2


def test_error_without_a_checkpoint(run):
    with pytest.raises(
        ConfigError, match=r"of step 1 is not finite.*no checkpoint was written yet"
    ):
        fit(trainer(Breaks(0)), run, METADATA)


def with_scaler(loss, **options):
    """Return a trainer with the loss scaler of fp16, on a CPU."""
    training = trainer(loss, **options)
    accelerator, optimizer = training.accelerator, training.optimizer
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
    accelerator.scaler, accelerator.native_amp = scaler, True
    accelerator.state._mixed_precision = "fp16"
    from accelerate.optimizer import AcceleratedOptimizer

    training.optimizer = AcceleratedOptimizer(optimizer.optimizer, scaler=scaler)
    accelerator._optimizers = [training.optimizer]
    return training


class Overflows(Fit):
    """Loss whose gradient overflows in some steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def __call__(self, model, x0, t, noise, estimator=None, conditioning=None):
        losses = super().__call__(model, x0, t, noise, estimator, conditioning)
        return losses * (math.inf if len(self.calls) - 1 in self.steps else 1.0)


def test_steps_skipped_by_the_scaler_have_no_effect(run, tmp_path):
    """Weights, average and rate are those of a run without the two steps that overflowed."""
    options = {"lr": 0.05, "lr_warmup": 3, "batch_size": 64, "clip_grad_norm": 1.0, "log_every": 1}
    training = with_scaler(Overflows({0, 3}), max_steps=6, **options)
    fit(training, run, METADATA)
    assert training.step == 6 and training.num_updates == 4 == training.ema.state()["step"]
    assert training.skipped == 0
    assert [record["loss_scale"] for record in run.metrics()] == [512, 512, 512, 256, 256, 256]
    clean = trainer(max_steps=4, **options)  # the batch has all of the data, in any order
    fit(clean, folder(tmp_path / "b"), METADATA)
    torch.testing.assert_close(training.network.values(), clean.network.values(), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        training.ema.model.values(), clean.ema.model.values(), rtol=1e-5, atol=0
    )


def test_training_stops_after_100_steps_skipped_by_the_scaler(run):
    training = with_scaler(Overflows(range(200)), max_steps=200)
    before = training.network.values().clone()
    with pytest.raises(ConfigError, match="the gradient of step 101 is not finite"):
        fit(training, run, METADATA)
    assert torch.equal(training.network.values(), before) and training.num_updates == 0


def test_skipped_steps_have_no_effect(run, tmp_path):
    """Weights, average and rate are those of a run without the two steps that were not finite."""
    options = {"lr": 0.05, "lr_warmup": 3, "batch_size": 64, "clip_grad_norm": 1.0, "log_every": 1}
    options |= {"on_nonfinite": "skip", "max_skips": 1}
    training = trainer(Overflows({0, 3}), max_steps=6, **options)
    fit(training, run, METADATA)
    assert (training.step, training.num_updates, training.num_skipped) == (6, 4, 2)
    assert [record["skipped"] for record in run.metrics()] == [1, 1, 1, 2, 2, 2]
    assert [record["loss"] is None for record in run.metrics()] == [True, False, False] * 2
    clean = trainer(max_steps=4, **options)  # the batch has all of the data, in any order
    fit(clean, folder(tmp_path / "b"), METADATA)
    torch.testing.assert_close(training.network.values(), clean.network.values(), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        training.ema.model.values(), clean.ema.model.values(), rtol=1e-5, atol=0
    )
    again = trainer(max_steps=6, **options)
    (newest, *_) = checkpoint.listed(run.path)
    again.resume(checkpoint.load(newest))
    assert (again.step, again.num_updates, again.num_skipped, again.samples) == (6, 4, 2, 6 * 64)


def test_too_many_skips_in_a_row_are_an_error(run):
    options = {"on_nonfinite": "skip", "max_skips": 2, "max_steps": 9, "checkpoint_every": 1}
    training = trainer(Overflows({1, 4, 5, 6}), **options)
    with pytest.raises(ConfigError, match="of step 7 is not finite after 2 skipped steps"):
        fit(training, run, METADATA)
    (newest, *_) = checkpoint.listed(run.path)
    again = trainer(Overflows(set()), **options)
    again.resume(checkpoint.load(newest))
    assert (again.step, again.skipped, again.num_skipped) == (6, 2, 3)
    broken = trainer(Overflows({0}), **options)  # in a row, also across a resume
    broken.resume(checkpoint.load(newest))
    with pytest.raises(ConfigError, match="of step 7 is not finite after 2 skipped steps"):
        fit(broken, run, METADATA)


class Constant(Fit):
    """Loss that is t + 1 for each sample."""

    def __call__(self, model, x0, t, noise, estimator=None, conditioning=None):
        super().__call__(model, x0, t, noise, estimator, conditioning)
        return t + 1 + 0 * model(x0).flatten(1).mean(1)


def test_loss_per_quarter(run):
    loss = Constant(num_steps=8)
    training = trainer(loss, batch_size=32, accumulate=2, max_steps=5, log_every=2)
    returned = fit(training, run, METADATA)
    records = run.metrics()
    assert [record["step"] for record in records] == [2, 4, 5]
    drawn = [call["t"] for call in loss.calls]
    for record, steps in zip(records, (drawn[0:4], drawn[4:8], drawn[8:10]), strict=True):
        t = torch.cat(steps)
        assert len(t) == 16 * len(steps)
        assert record["loss"] == pytest.approx((t + 1).double().mean().item())
        for quarter in range(4):
            inside = t[(t >= 2 * quarter) & (t < 2 * quarter + 2)]
            mean = record[f"loss_q{quarter}"]
            assert mean == (
                pytest.approx((inside + 1).double().mean().item()) if len(inside) else None
            )
    assert returned == records[-1]["loss"]
    assert records[0].keys() == {
        "step", "samples", "loss", "loss_q0", "loss_q1", "loss_q2", "loss_q3",
        "samples_per_second", "grad_norm", "lr", "ema_decay", "skipped",
    }  # fmt: skip
    assert [record["samples"] for record in records] == [64, 128, 160]
    assert [record["ema_decay"] for record in records] == pytest.approx(
        [1 - 1 / (1 + 0.1 * n) for n in (1, 3, 4)], abs=1e-6
    )


def test_ema_decay_without_a_window(run):
    fit(trainer(max_steps=5, log_every=1, ema_window=None), run, METADATA)
    expected = [1 - n ** (-2 / 3) for n in range(1, 6)]
    assert [record["ema_decay"] for record in run.metrics()] == pytest.approx(expected, abs=1e-6)


def test_quarter_without_samples_is_null(run):
    fit(trainer(Constant(num_steps=1), max_steps=1), run, METADATA)
    (record,) = run.metrics()
    assert record["loss_q0"] == 1 and record["loss_q1"] is None
    assert '"loss_q3": null' in run.metrics_file.read_text()


def test_timesteps_are_uniform(run):
    loss = Fit(num_steps=4)
    fit(trainer(loss, batch_size=512, max_steps=8), run, METADATA)
    counts = torch.cat([call["t"] for call in loss.calls]).bincount(minlength=4)
    assert len(counts) == 4 and (counts - 1024).abs().max() < 5 * (4096 * 0.25 * 0.75) ** 0.5


def test_speed_excludes_previews(run, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow(Fit):
        def __call__(self, *args, **options):
            clock[0] += 2.0
            return super().__call__(*args, **options)

    def preview(*_):
        clock[0] += 1000.0

    training = trainer(Slow(), batch_size=8, max_steps=6, log_every=3, preview_every=2)
    fit(training, run, METADATA, preview)
    assert clock[0] == 6 * 2 + 3 * 1000
    assert [record["samples_per_second"] for record in run.metrics()] == [4.0, 4.0]


@pytest.mark.parametrize(("every", "expected"), [(0, []), (2, [2, 4, 5]), (5, [5]), (100, [5])])
def test_steps_of_previews(run, every, expected):
    steps = []

    def preview(training, stopping):
        assert stopping() is False
        steps.append(training.step)
        training.network.eval()

    training = trainer(max_steps=5, preview_every=every)
    fit(training, run, METADATA, preview)
    assert steps == expected and training.network.training


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_label_dropout(run, share):
    loss = Fit(label_dropout=share)
    training = trainer(loss, data=Points(num_classes=3), batch_size=512, max_steps=8)
    fit(training, run, METADATA)
    labels = torch.cat([call["y"] for call in loss.calls])
    null = (labels == 3).sum().item()
    assert abs(null - share * 4096) <= 5 * (4096 * share * (1 - share)) ** 0.5
    assert labels.max() <= 3 and (labels[labels < 3] >= 0).all()


def test_label_dropout_does_not_shuffle_labels(run):
    data, loss = Points(num_classes=3), Fit(label_dropout=0.5)
    fit(trainer(loss, data=data, max_steps=2), run, METADATA)
    for call in loss.calls:
        for x0, y in zip(call["x0"], call["y"], strict=True):
            index = int((data.values == x0).flatten(1).all(1).nonzero())
            assert int(y) in (index % 3, 3)


def test_without_labels_the_network_gets_no_y(run):
    loss = Fit()
    fit(trainer(loss, max_steps=1), run, METADATA)
    assert all("y" not in call and call["estimator"] is None for call in loss.calls)


def coins(training, monkeypatch, rank, count):
    """Return a list of ``count`` steps: True where a rank self-conditions."""
    monkeypatch.setattr(type(training.accelerator), "process_index", rank)
    loss, batch = training.loss, next(training.loader.batches(0))
    loss.calls.clear()
    for step in range(count):
        training.step = step
        training._losses(batch, 0)
    assert all(call["estimator"] in (None, training.network) for call in loss.calls)
    return [call["estimator"] is not None for call in loss.calls]


def test_self_conditioning_is_random_and_equal_on_all_ranks(monkeypatch):
    training = trainer(Fit(self_condition=True))
    ranks = [coins(training, monkeypatch, rank, 400) for rank in range(2)]
    drawn = [call["t"].tolist() for call in training.loss.calls]
    assert ranks[0] == ranks[1]
    assert abs(sum(ranks[0]) - 200) < 50
    coins(training, monkeypatch, 0, 400)
    assert drawn != [call["t"].tolist() for call in training.loss.calls], "ranks are equal"


def test_random_numbers_of_a_step_depend_on_seed_step_and_micro_step(tmp_path):
    def drawn(seed, before):
        torch.manual_seed(before)
        loss = Fit(num_steps=1000)
        place = folder(tmp_path / f"{seed}-{before}")
        fit(trainer(loss, seed=seed, accumulate=2), place, METADATA)
        return [(call["t"].tolist(), call["noise"].tolist()) for call in loss.calls]

    first = drawn(0, 1)
    assert first == drawn(0, 2) and first != drawn(1, 1)
    assert len({str(t) for t, _ in first}) == 8, "micro-batches are equal"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_steps": 0}, "max_steps=0: must be at least 1"),
        ({"lr": math.inf}, "lr=inf: must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: must be 0 (off) or above"),
        ({"adam_betas": (0.9, 1.0)}, "adam_betas=[0.9,1.0]: must both be in [0, 1)"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: must be in [0, 1)"),
        ({"keep_every": 0}, "keep_every=0: must be at least 1"),
        ({"max_skips": 0}, "max_skips=0: must be at least 1"),
        (
            {"posthoc_ema": (0.05, 0.29)},
            "posthoc_ema=[0.05,0.29]: must be above 0 and below 0.289, which averages all steps "
            "equally",
        ),
        ({"posthoc_ema": (0.1, 0.1)}, "posthoc_ema=[0.1,0.1]: must be different numbers"),
        ({"posthoc_every": 0}, "posthoc_every=0: must be at least 1"),
        (
            {"best": "fid"},
            "best=fid: must be null or one of loss, loss_q0, loss_q1, loss_q2, loss_q3; to follow "
            "another metric, set trainer.evaluate_every",
        ),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm=0.0: must be above 0, or null for none"),
        ({"ema_window": 0.0}, "ema_window=0.0: must be above 0, or null for none"),
        ({"checkpoint_minutes": 0.0}, "checkpoint_minutes=0.0: must be above 0, or null for none"),
        ({"max_minutes": -1.0}, "max_minutes=-1.0: must be above 0, or null for none"),
        ({"lr_warmup": -1}, "lr_warmup=-1: must be at least 0"),
        ({"preview_every": -1}, "preview_every=-1: must be at least 0"),
        (
            {"num_workers": -1},
            "num_workers=-1: must be at least 0; null = chosen for the data",
        ),
        (
            {"batch_size": 6, "accumulate": 4},
            "batch_size=6: must be a multiple of 4 (accumulate 4 x 1 processes)",
        ),
    ],
)
def test_invalid_options(options, line):
    with pytest.raises(ConfigError) as caught:
        trainer(**options)
    assert str(caught.value) == line


def test_retained_checkpoints(run):
    training = trainer(
        max_steps=9, checkpoint_every=1, keep_last=2, keep_every=4, best="loss", log_every=1,
        lr=0.2, ema_decay=0.5,
    )  # fmt: skip
    fit(training, run, METADATA)
    losses = {record["step"]: record["loss"] for record in run.metrics()}
    best = min(losses, key=lambda step: losses[step])
    steps = {step_of(path) for path in checkpoint.listed(run.path)}
    assert steps == {9, 8, 4, best}
    assert (run.path / "checkpoints/best").resolve().name == f"step-{best:08d}"
    assert checkpoint.find(str(run.path / "checkpoints/best"), pytest.fail).step == best


def test_steps_of_checkpoints(run):
    fit(trainer(max_steps=7, checkpoint_every=3, keep_last=9), run, METADATA)
    assert [path.name[-1] for path in checkpoint.listed(run.path)] == ["7", "6", "3"]
    assert json.loads((run.path / "checkpoints/step-00000003/config.json").read_text())["step"] == 3
