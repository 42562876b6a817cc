"""Networks and schedulers of diffusers: stored numbers, exact round trips, and what is refused."""

import json
from functools import cache

import pytest
import torch

from ddpm.config.registry import build, with_defaults
from ddpm.config.schema import check
from ddpm.diffusion import (
    Denoiser,
    GaussianDiffusion,
    PredFlow,
    PredNoise,
    PredV,
    PredX0,
    Schedule,
    cosine,
    linear,
    rectified,
    sigmoid,
)
from ddpm.diffusion.denoiser import Clipping
from ddpm.errors import ConfigError
from ddpm.interop import import_network
from ddpm.interop.diffusers_network import config_of, network_spec
from ddpm.interop.diffusers_process import process_of, schedule_of, scheduler_config
from ddpm.interop.diffusers_weights import weights_from, weights_to
from ddpm.interop.export import export_model, export_pipeline
from ddpm.interop.foreign_format import NetworkSpec
from ddpm.models import IDDPMUNet, SimpleUNet
from ddpm.samplers import DDIM, DDPM
from tests.reference_cases import filled, load_case, relative_error

NETWORKS = ("google", "unconditional", "adm")
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
SEED = 5


@cache
def stored():
    return load_case("diffusers_unet2d")


def stored_network(name):
    """Return the config and the weights of a stored case."""
    case = stored()[0]["networks"][name]
    return case["config"], filled(case["shapes"])


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_those_of_diffusers(name):
    config, weights = stored_network(name)
    net = import_network("diffusers", config, weights).eval()
    x, t, expected = (stored()[1][f"{name}_{key}"] for key in ("x", "t", "out"))
    labels = stored()[1].get(f"{name}_y")
    assert relative_error(net(x, t, labels), expected) < 2e-6
    assert sum(p.numel() for p in net.parameters()) == sum(w.numel() for w in weights.values())


@torch.no_grad()
@pytest.mark.parametrize(
    "option", ["flip_sin_to_cos", "freq_shift", "norm_eps", "downsample_padding", "norm_num_groups"]
)
def test_each_option_for_diffusers_changes_the_output(option):
    config, weights = stored_network("google")
    config = {name: value for name, value in config.items() if name != option}
    if option == "norm_num_groups":
        config[option] = 8
    net = import_network("diffusers", config, weights).eval()
    x, t, expected = (stored()[1][f"google_{key}"] for key in ("x", "t", "out"))
    assert relative_error(net(x, t), expected) > 1e-5


@pytest.mark.slow
def test_networks_have_the_published_numbers_of_parameters():
    google = {
        "block_out_channels": [128, 256, 256, 256], "attention_head_dim": None,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    flowers = {
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
    }
    for config, expected in ((google, 35_746_307), (flowers, 113_673_219)):
        with torch.device("meta"):
            net = network_spec(config).build()
        assert sum(p.numel() for p in net.parameters()) == expected


def test_old_names_of_attention():
    config, weights = stored_network("google")
    old = dict(weights)
    for new, name in OLD_NAMES.items():
        old = {key.replace(f".{new}.", f".{name}."): value for key, value in old.items()}
    assert old.keys() != weights.keys()
    spec = network_spec({"_class_name": "UNetModel", **config})
    ours, same = weights_from(spec, old), weights_from(spec, weights)
    assert all(torch.equal(ours[name], same[name]) for name in same)


@pytest.mark.parametrize("name", sorted(stored()[0]["schedules"]))
def test_schedules_equal_those_of_diffusers(name):
    schedule = build(schedule_of(stored()[0]["schedules"][name]), "schedule")
    expected = stored()[1][f"alpha_bar_{name}"].double()
    torch.testing.assert_close(schedule.alpha_bar, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_samples_equal_those_of_a_pipeline(name):
    config, weights = stored_network("google")
    net = import_network("diffusers", config, weights).eval()
    process = process_of(stored()[0]["scheduler"], 3, 3, {}).process
    diffusion = build(
        process.diffusion, "diffusion", build(process.schedule, "schedule"), PredNoise()
    )
    denoiser = Clipping(Denoiser(net, diffusion), clip="static", bounds=(-1.0, 1.0))
    sampler = DDPM() if name == "ddpm" else DDIM(steps=5, spacing="trailing")
    assert diffusion.variance == "fixed_large"
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    images = sampler.sample(
        denoiser, x, randn_like=lambda x: torch.randn(x.shape, generator=generator)
    )
    expected = stored()[1][name]
    assert 0.05 < expected.std() and ((expected > 0) & (expected < 1)).double().mean() > 0.1
    assert float(((images / 2 + 0.5).clamp(0, 1) - expected).abs().max()) < 2e-6


# Networks of every kind of head, order of channels, resampling and label.
OURS = {
    "iddpm": {"num_heads": 2, "attention_resolutions": [2], "channel_mult": [1, 1]},
    "adm": {"num_head_channels": 8, "resblock_updown": True, "use_new_attention_order": True},
    "old": {"num_head_channels": 4, "resblock_updown": True, "use_scale_shift_norm": False},
    "google": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0,
               "num_head_channels": 16, "norm_eps": 1e-6},
    "deep": {"channel_mult": [1, 2, 1], "num_res_blocks": 2, "attention_resolutions": [1, 4],
             "num_head_channels": 8},
    "flat": {"channel_mult": [1], "attention_resolutions": []},
}  # fmt: skip
SMALL = {"model_channels": 16, "num_res_blocks": 1, "channel_mult": [1, 2], "norm_num_groups": 8,
         "attention_resolutions": [2], "pad": False}  # fmt: skip


def ours(outputs=3, num_classes=None, size=(8, 8), **options):
    """Return the specification of one of our networks, with every option."""
    node = with_defaults({"_target_": "ddpm.models.IDDPMUNet", **SMALL, **options}, "model")
    checked = check({k: v for k, v in node.items() if k != "_target_"}, IDDPMUNet)
    return NetworkSpec(IDDPMUNet, 3, outputs, size, num_classes, False, checked)


@torch.no_grad()
@pytest.mark.parametrize("name", OURS)
def test_a_network_that_is_exported_and_imported_is_the_same(name):
    classes = 4 if name == "adm" else None
    spec = ours(6 if name == "adm" else 3, classes, (8, 4), **OURS[name])
    net = spec.build().eval()
    net.load_state_dict(filled((key, w.shape) for key, w in net.state_dict().items()))
    config = json.loads(json.dumps(config_of(spec)))
    assert config["sample_size"] == [8, 4]
    theirs = weights_to(spec, net.state_dict())
    back = import_network("diffusers", config, theirs).eval()
    x, t = torch.randn(2, 3, 8, 4), torch.tensor([3, 500])
    y = None if classes is None else torch.tensor([0, 3])
    torch.testing.assert_close(back(x, t, y), net(x, t, y), rtol=1e-6, atol=1e-6)
    assert config_of(network_spec(config)) == {**config, "sample_size": back_size(config)}


def back_size(config):
    """Return the ``sample_size`` of a network that knows its levels only."""
    return 2 ** (len(config["block_out_channels"]) - 1)


@pytest.mark.parametrize(
    ("diffusion", "expected"),
    [
        (GaussianDiffusion(linear(), PredNoise()), {"beta_schedule": "linear", "beta_end": 0.02,
                                                    "prediction_type": "epsilon"}),
        (GaussianDiffusion(linear(num_steps=100), PredX0(), variance="fixed_large"),
         {"beta_schedule": "linear", "beta_end": 0.2, "prediction_type": "sample",
          "variance_type": "fixed_large"}),
        (GaussianDiffusion(cosine(num_steps=50), PredV(), variance="learned_range", loss="hybrid"),
         {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range",
          "prediction_type": "v_prediction"}),
        (GaussianDiffusion(cosine(zero_terminal_snr=True), PredV()),
         {"rescale_betas_zero_snr": True, "trained_betas": None}),
        (GaussianDiffusion(sigmoid(num_steps=30), PredV()), {"beta_schedule": "linear"}),
        (GaussianDiffusion(rectified(num_steps=30), PredV()), {"rescale_betas_zero_snr": False}),
        (GaussianDiffusion(linear(num_steps=1, beta_end=5e-4), PredV()), {"beta_end": 0.5}),
    ],
)  # fmt: skip
def test_a_process_that_is_exported_and_imported_is_the_same(diffusion, expected):
    config = json.loads(json.dumps(scheduler_config(diffusion)))
    assert config | expected == config
    learned = diffusion.learns_variance
    imported = process_of(config, 3, 6 if learned else 3, {})
    back = imported.process
    schedule = build(back.schedule, "schedule")
    torch.testing.assert_close(
        schedule.alpha_bar, diffusion.schedule.alpha_bar, rtol=1e-9, atol=1e-15
    )
    objective = build(back.objective, "objective")
    assert type(objective) is type(diffusion.objective) and imported.notes == []
    assert build(back.diffusion, "diffusion", schedule, objective).variance == diffusion.variance


def test_notes_on_clipping():
    assert process_of({"thresholding": True}, 3, 3, {}).notes == []
    for config in ({"clip_sample": False}, {"_class_name": "PNDMScheduler"}):
        (note,) = process_of(config, 3, 3, {}).notes
        assert "sampler.clip=none" in note
    old = process_of({"predict_epsilon": False}, 3, 3, {}).process
    assert old.objective["_target_"] == "ddpm.diffusion.PredX0"


REFUSED_NETWORKS = [
    ({"_class_name": "UNet1DModel"}, "unet=UNet1DModel: cannot be imported, only UNet2DModel"),
    ({"_class_name": "UNet3DConditionModel"}, "unet=UNet3DConditionModel: cannot be imported"),
    ({"center_input_sample": True}, "unet.center_input_sample=true: networks here receive x_t"),
    ({"time_embedding_type": "fourier"}, "unet.time_embedding_type=fourier: iddpm_unet has sinus"),
    ({"add_attention": False}, "unet.add_attention=false: the middle of iddpm_unet always has"),
    ({"mid_block_type": None}, "unet.mid_block_type"),
    ({"act_fn": "mish"}, "unet.act_fn=mish: the activation of iddpm_unet is SiLU"),
    ({"class_embed_type": "timestep"}, "unet.class_embed_type=timestep: "),
    ({"resnet_time_scale_shift": "spatial"}, "unet.resnet_time_scale_shift=spatial: "),
    ({"resnet_time_scale_shift": "scale_shift"}, "unet.attn_norm_num_groups: the attention in the"),
    ({"attn_norm_num_groups": 8}, "unet.attn_norm_num_groups=8: all norms of iddpm_unet have"),
    ({"out_channels": 4}, "unet.out_channels=4: but in_channels=3: outputs are one per input"),
    ({"time_embedding_dim": 16}, "unet.time_embedding_dim=16: is 4 times the first of block_out"),
    ({"attention_head_dim": 7}, "unet.attention_head_dim=7: does not divide the 16 channels"),
    ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"]},
     "unet.down_block_types=SkipDownBlock2D: iddpm_unet has DownBlock2D, AttnDownBlock2D"),
    ({"up_block_types": ["UpBlock2D"] * 3}, "unet.up_block_types: levels [] have attention on"),
    ({"up_block_types": ["UpBlock2D"] * 2}, "unet.up_block_types: has 2 blocks, but block_out"),
    ({"downsample_type": "resnet"}, "unet.down_block_types: some levels are resampled by a conv"),
    ({"freq_shift": 2}, "unet.freq_shift=2: iddpm_unet supports 0 and 1"),
    ({"attention_legacy_order": True}, "unet.attention_legacy_order=true: is not an option of"),
    ({"layers_per_block": "two"}, "unet.num_res_blocks=two: "),
    ({"block_out_channels": 3}, "unet: its config.json is not that of a UNet2DModel"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED_NETWORKS)
def test_networks_without_an_equivalent_are_refused(change, message):
    config, _ = stored_network("google")
    with pytest.raises(ConfigError) as caught:
        network_spec({**config, **change})
    assert str(caught.value).startswith(message)


REFUSED_SCHEDULERS = [
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "scheduler=FlowMatchEulerDiscreteSched"),
    ({"_class_name": "ScoreSdeVeScheduler"}, "scheduler=ScoreSdeVeScheduler: is not a scheduler"),
    ({"use_flow_sigmas": True}, "scheduler.use_flow_sigmas=true: "),
    ({"beta_schedule": "exp"}, "scheduler.beta_schedule=exp: is not one of linear, scaled_linear"),
    ({"prediction_type": "flow_prediction"}, "scheduler.prediction_type=flow_prediction: is not"),
    ({"variance_type": "learned_range"}, "scheduler.variance_type=learned_range: the unet has one"),
    ({"variance_type": "large"}, "scheduler.variance_type=large: is not a variance that"),
    ({"clip_sample_range": 2.0}, "scheduler.clip_sample_range=2.0: is not supported; set it to 1"),
    ({"thresholding": True, "sample_max_value": 1.5}, "scheduler.sample_max_value=1.5: is not"),
    ({"trained_betas": ["a"]}, "scheduler: its scheduler_config.json has a value of a wrong type"),
    (None, "schedule: cannot be determined: the folder has no scheduler_config.json; use the"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "message"), REFUSED_SCHEDULERS)
def test_schedulers_without_an_equivalent_are_refused(config, message):
    with pytest.raises(ConfigError) as caught:
        process_of(config, 3, 3, {})
    assert str(caught.value).startswith(message)


def test_nodes_of_the_user_replace_those_of_the_scheduler():
    nodes = {"schedule": {"_target_": "s"}, "objective": {"_target_": "o"}}
    for config in (None, {"_class_name": "KarrasVeScheduler"}):
        process = process_of(config, 3, 3, nodes).process
        assert (process.schedule, process.objective) == tuple(nodes.values())
    learned = process_of({"variance_type": "fixed_small"}, 3, 6, {"diffusion": {"_target_": "d"}})
    assert learned.process.diffusion == {"_target_": "d"}
    with pytest.raises(ConfigError, match=r"variance_type=fixed_small: the unet has two outputs"):
        process_of({"variance_type": "fixed_small"}, 3, 6, {})


def test_weights_that_do_not_fit_the_config_are_refused():
    config, weights = stored_network("google")
    spec, name = network_spec(config), "down_blocks.1.attentions.0.to_k.weight"
    for changed, message in (
        ({name: torch.zeros(3, 3)}, rf"unet\.{name}=\[3,3\]: its config.json implies the shape"),
        ({"other.weight": torch.zeros(1)}, r"unet\.other\.weight: is not a parameter that its"),
    ):
        with pytest.raises(ConfigError, match=message):
            weights_from(spec, {**weights, **changed})
    del weights[name]
    with pytest.raises(ConfigError, match=rf"unet\.{name}: is missing; its config.json implies"):
        weights_from(spec, weights)


LINEAR = GaussianDiffusion(linear(), PredNoise())
REFUSED_EXPORTS = [
    (ours(conv_resample=False), LINEAR, "model.conv_resample=false: UNet2DModel does not resample"),
    (ours(num_heads=2), LINEAR, None),
    (ours(num_heads=2, attention_resolutions=[1, 2]), LINEAR,
     "model.num_heads=2: makes heads of [8,16] channels, but UNet2DModel has one size"),
    (ours(num_heads_upsample=1, num_heads=2), LINEAR, "model.num_heads_upsample=1: UNet2DModel"),
    (ours(channel_mult=[0.5, 1], norm_num_groups=8), LINEAR, "model.channel_mult=[0.5,1.0]: "),
    (ours(size=(8,)), LINEAR, "format=diffusers: supports networks of model=iddpm_unet for images"),
    (NetworkSpec(SimpleUNet, 3, 3, (8, 8), None, False, {}), LINEAR, "format=diffusers: supports"),
    (ours(pad=True), LINEAR, "model.pad=true: the network pads its data"),
    (ours(), GaussianDiffusion(rectified(), PredFlow()), "objective=PredFlow: changes the input"),
    (ours(6), GaussianDiffusion(linear(), PredNoise(), variance="learned", loss="hybrid"),
     "diffusion.variance=learned: diffusers expects a variance there, not its logarithm"),
    (ours(), GaussianDiffusion(linear(num_steps=500), PredNoise(), rescale_timesteps=True),
     "diffusion.rescale_timesteps=true: gives the network t * 1000 / 500, but diffusers gives t"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "diffusion", "message"), REFUSED_EXPORTS)
def test_exports_without_an_equivalent_are_refused(spec, diffusion, message):
    weights = {} if spec.target is SimpleUNet else spec.build().state_dict()
    if message is None:
        assert len(export_pipeline(spec, weights, diffusion)) == 4
        return
    with pytest.raises(ConfigError) as caught:
        export_pipeline(spec, weights, diffusion)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("format", ["improved-diffusion", "guided-diffusion"])
def test_the_options_for_diffusers_are_not_exported_to_openai(format):
    with pytest.raises(ConfigError, match=r"^model\.freq_shift=1: is 0 in the original; use form"):
        spec = ours(freq_shift=1, norm_num_groups=32, model_channels=32)
        export_model(format, spec, {}, "raw", diffusion=LINEAR, step=0, version=None)


def test_a_table_of_betas():
    node = {"_target_": "ddpm.diffusion.table", "betas": [0.1, 0.2, 0.5]}
    schedule = build(node, "schedule")
    torch.testing.assert_close(schedule.betas, torch.tensor([0.1, 0.2, 0.5]).double())
    last = build({**node, "betas": [0.1, 0.2, 1.0]}, "schedule")
    assert isinstance(last, Schedule) and last.zero_terminal_snr and last.alpha_bar[-1] == 0
    assert build({**node, "zero_terminal_snr": True}, "schedule").zero_terminal_snr
    for betas in ([], [1.0], [0.1, 1.0, 0.2], [0.1, -1.0]):
        with pytest.raises(ConfigError):
            build({**node, "betas": betas}, "schedule")
