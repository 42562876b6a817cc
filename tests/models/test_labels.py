"""Networks say which label stands for "no class"; label dropout and guidance read it there."""

import pytest
import torch
from torch import nn

from ddpm import instantiate
from ddpm.data import ImageCodec
from ddpm.data.spec import DataSpec
from ddpm.diffusion import DiffusionLoss, GaussianDiffusion, PredV, cosine
from ddpm.errors import ConfigError
from ddpm.models import IDDPMUNet, SimpleUNet, UNet, UNet3D
from ddpm.models.labels import null_label, num_labels
from ddpm.models.layers import Network
from ddpm.pipeline import build_pipeline
from ddpm.samplers import DDIM
from tests.training.test_trainer import Points, trainer

__all__ = ["OwnNull", "Shifted"]
CPU = torch.device("cpu")
IDDPM = {"model_channels": 32, "num_res_blocks": 1, "attention_resolutions": ()}
SHAPE = (1, 2, 2)
PROCESS = GaussianDiffusion(cosine(num_steps=10), PredV(), label_dropout=0.5)


class OwnNull(Network):
    """Network with a null embedding beside those of the classes."""

    null_label = -1

    def __init__(self, channels, out_channels, size, num_classes, self_condition):
        super().__init__(channels, out_channels, num_classes, self_condition, (1,) * len(size))
        self.classes, self.none = nn.Embedding(num_classes, 1), nn.Parameter(torch.full((1,), 7.0))
        self.labels = []

    def embedding(self, y):
        return torch.where((y < 0)[:, None], self.none, self.classes(y.clamp(min=0)))

    def forward(self, x, t, y=None, x_self_cond=None):
        self.labels.append(y.tolist())
        return 0 * self.prepare(x, y, x_self_cond) + self.embedding(y)[:, :, None, None]


class Shifted(OwnNull):
    """The null embedding is the first row of the table, which label dropout adds."""

    null_label = None

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.null_label = -1

    def embedding(self, y):
        return self.classes(y + 1)


def built(monkeypatch, name, process=PROCESS, num_classes=3):
    """Return a network as training and loading build it."""
    monkeypatch.setattr("ddpm.config.registry._plugins", [__name__])
    names = [str(number) for number in range(num_classes)]
    spec = DataSpec(SHAPE, num_classes, names, ImageCodec(SHAPE))
    config = {"seed": 0, "model": {"_target_": f"{__name__}.{name}"}}
    return instantiate.network(config, spec, process)


@pytest.mark.parametrize(
    ("network", "size", "options"),
    [
        (UNet, (8, 8), {"dim": 8, "dim_mults": (1,)}),
        (IDDPMUNet, (8, 8), {**IDDPM, "channel_mult": (1,)}),
        (SimpleUNet, (16, 16), {"width": 8, "num_heads": 2}),
        (UNet3D, (2, 8, 8), {"dim": 8, "dim_mults": (1,)}),
    ],
)
def test_it_is_the_last_label_by_default(network, size, options):
    net = network(1, 1, size, 5, False, **options)
    assert net.null_label == 4 and null_label(net, 4) == 4
    assert network(1, 1, size, None, False, **options).null_label is None
    assert network.null_label is None and num_labels(network, 4) == 5
    assert not [name for name in net.state_dict() if "null_label" in name]


def test_a_class_with_a_null_embedding_of_its_own_gets_the_classes_of_the_data(monkeypatch):
    own, shifted = built(monkeypatch, "OwnNull"), built(monkeypatch, "Shifted")
    assert (own.num_classes, own.null_label) == (3, -1)
    assert (shifted.num_classes, shifted.null_label) == (4, -1)
    without = GaussianDiffusion(cosine(num_steps=10), PredV())
    assert built(monkeypatch, "Shifted", without).num_classes == 3


@pytest.mark.parametrize("name", ["OwnNull", "Shifted"])
def test_label_dropout_trains_the_null_embedding_of_the_network(monkeypatch, name):
    net = built(monkeypatch, name)
    training = trainer(DiffusionLoss(PROCESS), net, Points(num_classes=3), batch_size=64)
    training.accumulate_gradient(training.loader.batches(0))
    (labels,) = net.labels
    assert set(labels) == {-1, 0, 1, 2} and 20 <= labels.count(-1) <= 44
    trained = net.none.grad if name == "OwnNull" else net.classes.weight.grad[0]
    assert float(trained.abs().sum()) > 0


@pytest.mark.parametrize("name", ["OwnNull", "Shifted"])
def test_guidance_extrapolates_from_the_null_embedding_of_the_network(monkeypatch, name):
    net, scale = built(monkeypatch, name), 3.0
    pipeline = build_pipeline(
        net, PROCESS, DDIM(steps=1, clip="none"), ImageCodec(SHAPE), device=CPU,
        guidance=scale, num_classes=3,
    )  # fmt: skip
    x, last = torch.ones(2, *SHAPE), PROCESS.num_steps - 1
    conditioning = pipeline.conditioning(torch.tensor([2, 0]))
    with torch.no_grad():
        x0 = pipeline.denoiser(x, last, conditioning=conditioning).x0
        v = net.embedding(torch.tensor([2, 0])), net.embedding(torch.tensor([-1, -1]))
    assert net.labels == [[2, 0, -1, -1]]
    a, s = PROCESS.schedule.signal_noise(last)
    expected = a - s * (v[1] + scale * (v[0] - v[1]))
    torch.testing.assert_close(x0, expected[:, :, None, None].expand_as(x0))


class Unlabelled(nn.Module):
    """Network that does not say which label stands for "no class"."""

    def forward(self, x, t, y=None):
        return x


def pipeline_of(net, **options):
    return build_pipeline(
        net, PROCESS, DDIM(steps=1), ImageCodec(SHAPE), device=CPU, num_classes=3, **options
    )


def test_a_network_without_one_is_not_trained_with_label_dropout_nor_guided():
    net = Unlabelled()
    line = (
        rf"^model\._target_={__name__}\.Unlabelled: does not have a null_label, the label that "
        r'stands for "no class"; set null_label to the number outside of the classes that the '
        r"network embeds for it, or use diffusion\.label_dropout=0 and guidance=1$"
    )
    with pytest.raises(ConfigError, match=line):
        trainer(DiffusionLoss(PROCESS), net, Points(num_classes=3))
    with pytest.raises(ConfigError, match=line):
        pipeline_of(net, guidance=2.0)
    assert pipeline_of(net).null_label is None
    assert trainer(DiffusionLoss(PROCESS), nn.Linear(1, 1), Points()).null_label is None
    net.null_label = 3
    assert pipeline_of(net, guidance=2.0).null_label == 3


def test_a_class_of_the_data_is_rejected():
    net = Unlabelled()
    net.null_label = 2
    with pytest.raises(ConfigError, match="has the null_label 2, which is one of the 3 classes"):
        pipeline_of(net, guidance=2.0)
