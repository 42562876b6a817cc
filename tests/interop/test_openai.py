"""Networks of improved-diffusion and guided-diffusion: outputs and inferred arguments."""

import itertools

import pytest
import torch

from ddpm.errors import ConfigError
from ddpm.interop import import_network
from ddpm.interop.foreign_format import bind
from ddpm.interop.openai import FORMATS
from ddpm.models import IDDPMUNet
from tests.reference_cases import filled, load_case, relative_error

IDDPM, ADM = "improved-diffusion", "guided-diffusion"
CASES = {
    "iddpm_unet_1d": IDDPM,
    "iddpm_unet_cond_scale_shift": IDDPM,
    "iddpm_unet_uncond": IDDPM,
    "adm_unet": ADM,
}
SMALL = {
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
}
HIDDEN = {
    "image_size",
    "dropout",
    "use_checkpoint",
    "use_fp16",
    "num_heads",
    "num_heads_upsample",
    "num_head_channels",
    "use_new_attention_order",
}


def weights_of(source, **kwargs):
    """Return a state dict on the meta device for constructor arguments."""
    original = FORMATS[source]
    with torch.device("meta"):
        return (
            original.from_kwargs(bind(source, original.defaults, kwargs), {}).build().state_dict()
        )


@torch.no_grad()
def test_reference_case():
    meta, arrays = load_case("adm_unet")
    net = import_network(ADM, meta["kwargs"], filled(meta["state_dict"])).eval()
    assert sum(p.numel() for p in net.parameters()) == meta["parameters"]
    names = [[name, list(w.shape)] for name, w in net.state_dict().items()]
    assert names == meta["state_dict"]
    assert relative_error(net(arrays["x"], arrays["t"], arrays["y"]), arrays["out"]) < 1e-4


@torch.no_grad()
def test_arguments_that_cannot_be_inferred_change_the_output():
    meta, arrays = load_case("adm_unet")
    for wrong in ({"use_new_attention_order": False}, {"num_head_channels": 8}):
        kwargs = {**meta["kwargs"], **wrong}
        net = import_network(ADM, kwargs, filled(meta["state_dict"])).eval()
        assert relative_error(net(arrays["x"], arrays["t"], arrays["y"]), arrays["out"]) > 1e-3


@torch.no_grad()
def test_all_arguments_of_guided_diffusion_are_used():
    kwargs = {
        "image_size": 4,
        "in_channels": 1,
        "model_channels": 16,
        "out_channels": 2,
        "num_res_blocks": 2,
        "attention_resolutions": {1, 2, 64},  # a rate that no level has means nothing there
        "dropout": 0.25,
        "channel_mult": [2, 4],
        "conv_resample": False,
        "dims": 3,
        "num_classes": 4,
        "use_checkpoint": True,
        "use_fp16": True,
        "num_heads": -1,
        "num_head_channels": 16,
        "num_heads_upsample": -1,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "use_new_attention_order": True,
    }
    net = IDDPMUNet(
        1, 2, (2, 4, 4), 4, model_channels=16, num_res_blocks=2, attention_resolutions=(1, 2),
        dropout=0.25, channel_mult=(2, 4), scale_stem=True, conv_resample=False,
        resblock_updown=True, num_head_channels=16, use_new_attention_order=True,
        use_checkpoint=True, use_scale_shift_norm=True,
    )  # fmt: skip
    net.load_state_dict(filled((name, w.shape) for name, w in net.state_dict().items()))
    imported = import_network(ADM, kwargs, net.state_dict())
    assert str(imported) == str(net)
    assert imported.middle_block[1].use_checkpoint
    inputs = torch.randn(2, 1, 2, 4, 4), torch.tensor([0.5, 10]), torch.tensor([0, 3])
    assert torch.equal(imported.eval()(*inputs), net.eval()(*inputs))


@pytest.mark.parametrize("source", [IDDPM, ADM])
def test_defaults_are_those_of_the_original(source):
    required = {name: SMALL[name] for name in list(SMALL)[:5]}
    spec = FORMATS[source].from_kwargs(bind(source, FORMATS[source].defaults, required), {})
    guided = {
        "num_head_channels": -1,
        "resblock_updown": False,
        "use_new_attention_order": False,
        "scale_stem": True,
    }
    assert spec.options == {
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": (2,),
        "dropout": 0.0,
        "channel_mult": (1, 2, 4, 8),
        "conv_resample": True,
        "dims": 2,
        "use_checkpoint": False,
        "num_heads": 1,
        "num_heads_upsample": -1,
        "use_scale_shift_norm": False,
        **(guided if source == ADM else {}),
    }
    assert (spec.num_classes, spec.self_condition) == (None, False)


@torch.no_grad()
def test_weights_in_half_precision_are_loaded_and_computed_in_float32():
    weights = {
        name: torch.full(w.shape, 0.01).half() for name, w in weights_of(ADM, **SMALL).items()
    }
    net = import_network(ADM, {**SMALL, "use_fp16": True}, weights)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert net(torch.randn(1, 3, 4, 4), torch.tensor([3])).dtype == torch.float32


@pytest.mark.parametrize("name", CASES)
def test_arguments_of_the_cases_are_inferred(name):
    meta, _ = load_case(name)
    weights = {key: torch.empty(shape, device="meta") for key, shape in meta["state_dict"]}
    inferred = FORMATS[CASES[name]].infer(weights)
    expected = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in meta["kwargs"].items()
        if key not in HIDDEN
    }
    assert expected.items() <= inferred.items()


LEVELS = [
    ((1,), (1,)),
    ((1, 2), ()),
    ((1, 2, 2), (2, 4)),
    ((1, 1, 3), (1, 4)),
]


@pytest.mark.parametrize("source", [IDDPM, ADM])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("mult", "rates"), LEVELS)
def test_arguments_are_inferred_from_names_and_shapes(source, dims, mult, rates):
    variants = itertools.product([1, 2, 3], [None, 7], [True, False], [True, False], [False, True])
    every_third = itertools.islice(variants, dims - 1, None, 3)  # each number of axes has others
    for blocks, classes, scale_shift, conv, updown in every_third:
        kwargs = {
            "in_channels": 2,
            "model_channels": 64,
            "out_channels": 4 if blocks == 2 else 2,
            "num_res_blocks": blocks,
            "attention_resolutions": rates,
            "channel_mult": mult,
            "dims": dims,
            "num_classes": classes,
            "use_scale_shift_norm": scale_shift,
        }
        if len(mult) > 1:
            kwargs["conv_resample"] = conv
            if source == ADM:
                kwargs["resblock_updown"] = updown
        weights = weights_of(source, **kwargs)
        if kwargs.get("resblock_updown"):
            del kwargs["conv_resample"]  # which then decides nothing
        assert FORMATS[source].infer(weights) == kwargs


@pytest.mark.parametrize(
    ("width", "mult"), [(64, (0.5, 1, 1.5)), (16, (2, 4)), (96, (1 / 3, 1)), (32, (3, 1, 2))]
)
def test_fractional_multipliers_and_a_wider_first_level_are_inferred(width, mult):
    kwargs = {**SMALL, "model_channels": width, "channel_mult": mult}
    inferred = FORMATS[ADM].infer(weights_of(ADM, **kwargs))
    assert inferred["channel_mult"] == mult
    assert [type(n) for n in inferred["channel_mult"]] == [type(n) for n in mult]
    assert inferred["model_channels"] == width


def test_a_fraction_that_rounds_down_still_gives_its_width():
    weights = weights_of(ADM, **{**SMALL, "model_channels": 352, "channel_mult": (15.001 / 11, 1)})
    assert weights["input_blocks.0.0.weight"].shape[0] == 480 != int(352 * (480 / 352))
    again = weights_of(ADM, **FORMATS[ADM].infer(weights))
    assert [w.shape for w in again.values()] == [w.shape for w in weights.values()]


def wrong(source=ADM, remove=(), **changes):
    """Return the weights of a small network, some of them removed or replaced."""
    weights = {
        name: w for name, w in weights_of(source, **SMALL).items() if not name.startswith(remove)
    }
    return {**weights, **{name: torch.empty(shape) for name, shape in changes.items()}}


CLASSIFIER = "classifiers (EncoderUNetModel) cannot be imported, only diffusion networks"
UPSAMPLER = (
    "as networks for super-resolution (SuperResModel), which cannot be imported; use "
    "ddpm.interop.import_network for a network of data with 6 channels"
)


@pytest.mark.parametrize(
    ("source", "weights", "line"),
    [
        (
            ADM,
            wrong(remove=("output_blocks.", "out."), **{"out.2.positional_embedding": (64, 65)}),
            f"state_dict.out.2.positional_embedding=[64,65]: {CLASSIFIER}",
        ),
        (
            ADM,
            wrong(remove=("output_blocks.", "out."), **{"out.3.weight": (9, 64, 1, 1)}),
            f"state_dict.output_blocks: is missing; {CLASSIFIER}",
        ),
        (
            ADM,
            weights_of(ADM, **{**SMALL, "in_channels": 6}),
            "state_dict.input_blocks.0.0.weight=[32,6,3,3]: has 6 input and 6 output channels, "
            + UPSAMPLER,
        ),
        (
            IDDPM,
            weights_of(IDDPM, **{**SMALL, "in_channels": 6, "out_channels": 3}),
            "state_dict.input_blocks.0.0.weight=[32,6,3,3]: has 6 input and 3 output channels, "
            + UPSAMPLER,
        ),
        (
            IDDPM,
            weights_of(ADM, **SMALL, resblock_updown=True),
            "source=improved-diffusion: the network resamples in residual blocks; "
            "use source=guided-diffusion",
        ),
        (
            IDDPM,
            {"init_conv.weight": torch.empty(8, 3, 7, 7)},
            "state_dict.input_blocks.0.0.weight: is missing; these are not the weights "
            "of improved-diffusion's UNetModel",
        ),
        (
            ADM,
            wrong(remove=("time_embed.",)),
            "state_dict.time_embed.0.weight: is missing; these are not the weights "
            "of guided-diffusion's UNetModel",
        ),
    ],
)
def test_error_lines(source, weights, line):
    with pytest.raises(ConfigError) as error:
        FORMATS[source].infer(weights)
    assert str(error.value) == line
