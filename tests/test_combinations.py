"""Combinations of models, objectives, schedules and samplers compose, train and sample."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ddpm import generation, instantiate
from ddpm.cli.app import config_dir
from ddpm.config.registry import exported, options_of
from ddpm.config.schema import hints_of, typed
from ddpm.config.text import plain
from ddpm.data.spec import DataSpec
from ddpm.distributed import devices
from ddpm.errors import ConfigError
from ddpm.pipeline import build_pipeline
from ddpm.training.checkpoint import CheckpointMetadata
from ddpm.training.loop import TrainingLoop
from ddpm.training.meter import Meter
from ddpm.training.run import Run
from ddpm.training.trainer import GradientDecision

CONFIGS = config_dir()
SMALL = {
    "unet": ["data=digits", "model.dim=8", "model.dim_mults=[1,2]"],
    "unet1d": ["data=sequence", "model.dim=8", "model.dim_mults=[1,2]"],
    "unet3d": ["data=video", "model.dim=8", "model.dim_mults=[1,2]", "model.attn_heads=1"],
    "simple_unet": ["data=digits", "model.width=8", "model.time_dim=8", "model.num_heads=2"],
    "iddpm_unet": [
        "data=digits",
        "model.model_channels=32",
        "model.channel_mult=[1,1]",
        "model.num_res_blocks=1",
        "model.attention_resolutions=[2]",
    ],
}


def names(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def composed(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return plain(compose("train", overrides=list(overrides)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data files by model, for models that require a path."""
    folder = tmp_path_factory.mktemp("files")
    videos = np.random.default_rng(1).integers(0, 256, (8, 1, 5, 8, 8), np.uint8)
    np.save(folder / "videos.npy", videos)
    return {"unet1d": write_waves(folder / "waves.npy"), "unet3d": folder / "videos.npy"}


def write_waves(path):
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (16, 1, 1))
    np.save(path, np.sin(phase + np.arange(16) / 2).astype(np.float32))
    return path


def built(config):
    options = instantiate.trainer_options(config)
    accelerator = devices.accelerator(
        "cpu",
        options.precision,
        key="trainer.precision",
        accumulate=options.accumulate,
    )
    data = instantiate.dataset(config)
    config = instantiate.measured(config, data)
    spec = DataSpec.from_dataset(data)
    process = instantiate.diffusion(config, spec)
    network = instantiate.network(config, spec, process)
    return instantiate.trainer(config, network, process, data, accelerator), spec, process


def test_all_choices_of_the_groups_are_tested():
    assert names("model") == sorted(SMALL)
    assert {"linear", "cosine", "sigmoid", "rectified", "edm"} == set(names("schedule"))
    objectives = {"pred_noise", "pred_v", "pred_x0", "pred_flow", "edm"}
    assert objectives == set(names("objective"))
    samplers = {"ddim", "ddpm", "deis", "dpmpp", "heun", "ipndm", "unipc"}
    assert samplers == set(names("sampler"))
    assert {"digits", "cifar", "folder", "mnist", "sequence", "video"} == set(names("data"))
    assert {"ddpm", "iddpm", "iddpm_vlb"} == set(names("diffusion"))
    densities = {"logit_normal", "log_normal"}
    assert {"uniform", "stratified", "loss_second_moment"} | densities == set(names("timesteps"))


@pytest.mark.parametrize("objective", ["pred_v", "edm"])  # the others: with a tiny network below
@pytest.mark.parametrize("model", names("model"))
def test_two_steps_and_samples(tmp_path, files, model, objective):
    """Every network with whole and with real times, on the schedule that the objective selects."""
    config = composed(
        f"model={model}",
        *SMALL[model],
        f"objective={objective}",
        "trainer.batch_size=4",
        "trainer.max_steps=2",
        "trainer.lr_warmup=0",
        *([f"data.path={files[model]}"] if model in files else []),
    )
    trainer, spec, process = built(config)
    before = [p.clone() for p in trainer.network.parameters()]
    run = Run(tmp_path / "run")
    run.create("")
    loss = TrainingLoop(trainer, run, CheckpointMetadata(config=config, data=spec.state())).train()
    assert np.isfinite(loss) and trainer.step == 2
    assert any(
        not torch.equal(p, q) for p, q in zip(before, trainer.network.parameters(), strict=True)
    )
    assert_samples(trainer.ema.model, process, spec, "ddim")


def assert_samples(network, process, spec, sampler, **options):
    """Check that a sampler draws finite samples of the right shape in three steps."""
    node = node_of("sampler", sampler)
    reverse_sampler = instantiate.sampler({**node, "steps": 3, **options})
    device = torch.device("cpu")
    drawn = build_pipeline(network, process, reverse_sampler, spec.codec, device=device)
    ((raw, _),) = generation.generate(drawn, range(2), seed=0, batch_size=2)
    assert tuple(raw.shape) == (2, *spec.shape) and raw.float().isfinite().all()


def node_of(group, choice):
    """Return the node of a choice, with its defaults."""
    node = yaml.safe_load((CONFIGS / group / f"{choice}.yaml").read_text())
    node.pop("defaults", None)
    return node


class Tiny(torch.nn.Module):
    """A network of two layers that receives the time."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 1)

    def forward(self, x, t):
        assert x.isfinite().all() and t.isfinite().all()
        return self.outer(torch.tanh(self.inner(x) + t.float().sin().reshape(-1, 1, 1, 1)))


@pytest.fixture(scope="module")
def digits():
    config = composed("data=digits", "trainer.batch_size=4", "trainer.lr_warmup=0")
    data = instantiate.dataset(config)
    return config, data, DataSpec.from_dataset(data)


def tiny_training(digits, **choices):
    """Return the trainer of a tiny network, with these choices of groups."""
    config, data, spec = digits
    nodes = {group: node_of(group, choice) for group, choice in choices.items()}
    config = instantiate.measured({**config, **nodes}, data)
    process = instantiate.diffusion(config, spec)
    accelerator = devices.accelerator("cpu", "no", key="trainer.precision")
    return instantiate.trainer(config, Tiny(), process, data, accelerator)


# Objectives that have no meaning where no signal is left.
REFUSED = {
    ("pred_noise", "rectified"): "the noise does not determine x0 (Lin et al. 2023)",
    ("edm", "rectified"): "the time input ln(sigma) / 4 is infinite",
}


@pytest.mark.parametrize("schedule", names("schedule"))
@pytest.mark.parametrize("objective", names("objective"))
def test_every_pair_of_objective_and_schedule_trains_and_samples(digits, objective, schedule):
    """Two steps, and samples of every sampler, or an error with the reason."""
    if (objective, schedule) in REFUSED:
        with pytest.raises(ConfigError) as caught:
            tiny_training(digits, objective=objective, schedule=schedule)
        reason = REFUSED[objective, schedule]
        assert str(caught.value) == (
            f"schedule: leaves no signal at the last step, where {reason}; use objective=pred_v, "
            "pred_flow or pred_x0"
        )
        return
    trainer = tiny_training(digits, objective=objective, schedule=schedule)
    train_two_steps(trainer)
    for sampler in names("sampler"):
        assert_samples(trainer.network, trainer.diffusion, digits[2], sampler)


def train_two_steps(trainer):
    """Check that two steps have finite losses and change the weights."""
    before = torch.nn.utils.parameters_to_vector(trainer.network.parameters()).clone()
    for _ in range(2):
        result = trainer.accumulate_gradient(trainer.loader.batches(trainer.samples))
        assert result.losses.isfinite().all()
        trainer.apply_gradient(GradientDecision(use=True, counts=True))
    after = torch.nn.utils.parameters_to_vector(trainer.network.parameters())
    assert after.isfinite().all() and not torch.equal(before, after)


def test_the_strata_of_a_step_are_shared_by_processes_and_micro_batches(digits, monkeypatch):
    trainer = tiny_training(digits, timesteps="stratified")
    trainer.accumulate = 3

    def parts():
        for rank in range(2):
            fake = SimpleNamespace(num_processes=2, process_index=rank)
            monkeypatch.setattr(trainer, "accelerator", fake)
            yield from (trainer._part(micro) for micro in range(3))

    first = list(parts())
    assert sorted(part.index for part in first) == list(range(6))
    assert {part.count for part in first} == {6}
    (uniform,) = {part.uniform for part in first}
    assert 0 <= uniform < 1 and list(parts()) == first
    trainer.step = 1
    assert {part.uniform for part in parts()} != {uniform}
    cpu = torch.device("cpu")
    drawn = torch.cat([trainer.timesteps.draw(2, cpu, part)[0] for part in parts()])
    assert sorted((drawn * 12 // 1000).tolist()) == list(range(12))


@pytest.mark.parametrize("schedule", ["cosine", "rectified", "edm"])
@pytest.mark.parametrize("timesteps", names("timesteps"))
@pytest.mark.parametrize("loss", ["simple", "vlb"])
def test_every_pair_of_times_and_schedule_trains(digits, loss, timesteps, schedule):
    config = {**digits[0], "diffusion": {**digits[0]["diffusion"], "loss": loss}}
    choices = {"timesteps": timesteps, "schedule": schedule, "objective": "pred_flow"}
    trainer = tiny_training((config, *digits[1:]), **choices)
    train_two_steps(trainer)
    meter = Meter(trainer.accelerator, trainer.diffusion.num_steps)
    t, weights = trainer.timesteps.draw(400, torch.device("cpu"))
    assert t.min() >= 0 and t.max() <= trainer.diffusion.num_steps - 1
    meter.add(torch.ones(400), t, weights)
    values = meter.read()
    assert values["loss"] == pytest.approx(1) and values["loss_q1"] == pytest.approx(1)


VALUES = [  # options of different parts share a run
    ("diffusion=iddpm",),
    ("diffusion=iddpm", "objective=pred_noise", "diffusion.vlb_weight=1"),
    ("diffusion=iddpm", "diffusion.variance=learned", "diffusion.self_condition=true"),
    ("diffusion=iddpm_vlb", "timesteps.history_per_term=1", "schedule.num_steps=2"),
    ("diffusion=iddpm_vlb", "timesteps=uniform", "diffusion.bin_width=0.1"),
    ("diffusion.loss=vlb", "timesteps=loss_second_moment", "timesteps.uniform_prob=0.5"),
    ("diffusion.variance=fixed_large", "objective.loss=l1", "trainer.lr_decay=cosine", "trainer.lr_warmup=1"),
    ("diffusion.offset_noise=0.1", "objective.loss=huber", "trainer.weight_decay=0.01", "trainer.adam_betas=[0.8,0.99]"),
    ("diffusion.self_condition=true", "objective.weighting=noise", "trainer.accumulate=2"),
    ("diffusion.rescale_timesteps=true", "objective.min_snr_gamma=5", "trainer.clip_grad_norm=null"),
    ("diffusion.label_dropout=0.1", "data.class_cond=true", "data.image_size=16", "trainer.channels_last=true"),
    ("schedule.zero_terminal_snr=true", "trainer.ema_warmup=false", "trainer.ema_decay=0.5"),
    ("schedule.max_beta=0.9999", "trainer.num_workers=1"),
    ("schedule.num_steps=1", "trainer.precision=bf16"),
    ("schedule=sigmoid", "schedule.start=0", "schedule.end=2", "schedule.tau=0.5"),
    ("schedule=linear", "schedule.beta_end=0.01"),
    ("objective=pred_flow", "schedule.shift=3", "timesteps.mean=-0.5", "timesteps.std=2"),
    ("objective=edm", "objective.sigma_data=0.5", "objective.min_snr_gamma=5"),
    ("objective=edm", "diffusion=iddpm", "schedule.sigma_min=0.01", "schedule.sigma_max=50"),
    ("timesteps=log_normal", "timesteps.p_mean=0", "timesteps.p_std=1"),
    ("timesteps=stratified", "trainer.accumulate=2"),
]  # fmt: skip


@pytest.mark.parametrize(
    "model",
    ["unet", *(pytest.param(m, marks=pytest.mark.slow) for m in ("iddpm_unet", "simple_unet"))],
)
@pytest.mark.parametrize("options", VALUES, ids=lambda options: " ".join(options))
def test_every_option_trains(tmp_path, options, model):
    base = [f"model={model}", *SMALL[model], "trainer.batch_size=4", "trainer.max_steps=2"]
    config = composed(*base, *options)
    trainer, spec, _ = built(config)
    run = Run(tmp_path / "run")
    run.create("")
    assert np.isfinite(
        TrainingLoop(trainer, run, CheckpointMetadata(config=config, data=spec.state())).train()
    )


# Choices that are variants of the class of another choice.
OWN_VALUES = {
    ("unet1d", "dims"),
    ("unet1d", "full_attn"),
    *((name, option) for name in ("iddpm", "iddpm_vlb") for option in ("variance", "loss")),
    *((name, "rescale_timesteps") for name in ("iddpm", "iddpm_vlb")),
}


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_yaml_files_list_every_option_with_its_default(path):
    """Keys and values of a YAML equal the options and defaults of its class."""
    node = yaml.safe_load(path.read_text())
    if not isinstance(node, dict) or "_target_" not in node:
        return
    node.pop("defaults", None)
    if path.parent.name == "data":
        assert node.pop("val_fraction") == 0.0  # an option of all data nodes, not of the class
    target = exported(node.pop("_target_"), f"{path.parent.name}._target_")
    schema = options_of(target)
    hints = hints_of(schema)
    parameters = inspect.signature(schema).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert node.keys() == options.keys()
    for name, default in options.items():
        if default is inspect.Parameter.empty:
            assert node[name] == "???", name
        elif name in getattr(target, "cpu_defaults", {}):
            assert node[name] is None, name  # the default depends on the device
        else:
            value = typed(node[name], hints[name], name)
            assert value == default or (path.stem, name) in OWN_VALUES, name
