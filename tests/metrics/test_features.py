"""Feature extraction in batches and shards."""

import pickle

import pytest
import torch

from ddpm.distributed.sharding import shard_range
from ddpm.errors import ConfigError
from ddpm.metrics import (
    Custom,
    Features,
    InMemoryImages,
    Pixels,
    concatenate,
    extract,
    extract_batch,
)
from tests.metrics.torch_fidelity_reference import custom, pictures, save


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 30, 31])
def test_shards_consist_of_whole_batches(world, count):
    shards = [shard_range(count, rank, world, batch_size=5) for rank in range(world)]
    assert [index for shard in shards for index in shard] == list(range(count))
    batches = [tuple(shard[s : s + 5]) for shard in shards for s in range(0, len(shard), 5)]
    assert batches == [tuple(range(s, min(s + 5, count))) for s in range(0, count, 5)]
    sizes = [-(-len(shard) // 5) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_features_and_logits_follow_the_order_of_the_indices(tmp_path):
    extractor = custom(tmp_path / "net.pt", 3)
    pixels, done = pictures(23, 3, 9, 9), []
    indices = [22, 3, 7, 7, 0]
    features = extract(extractor, InMemoryImages(pixels), indices, batch_size=2, device="cpu",
                    on_batch=done.append)  # fmt: skip
    whole = extractor.outputs(pixels)
    assert features.indices.tolist() == indices and done == [2, 2, 1]
    torch.testing.assert_close(features.features, whole["features"][indices])
    torch.testing.assert_close(features.logits, whole["logits"][indices])


def test_concatenate_sorts_and_drops_padding_and_empty_parts():
    def part(*indices):
        values = torch.tensor(indices, dtype=torch.float32)[:, None]
        return Features(torch.tensor(indices), values, -values)

    parts = [part(3, 4), concatenate([]), part(0, 1, 2, 5), part(0, 1, 6)]
    assert len(parts[1]) == 0
    parts = pickle.loads(pickle.dumps(parts))  # as in communication between processes
    whole = concatenate(parts, 6)
    assert whole.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert whole.features[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert whole.logits[:, 0].tolist() == [0, -1, -2, -3, -4, -5]
    assert concatenate(parts).indices.tolist() == [3, 4, 0, 1, 2, 5, 0, 1, 6]
    with pytest.raises(AssertionError, match="images are missing"):
        concatenate(parts[:1], 6)


def test_concatenate_without_logits():
    whole = concatenate([extract_batch(Pixels(), pictures(2, 1, 2, 2), [1, 0])], 2)
    assert whole.logits is None
    assert torch.equal(whole.features, pictures(2, 1, 2, 2).flatten(1).flip(0) / 255)


class Inverse(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 1 / images.flatten(1).float()


def test_non_finite_features_are_reported_in_one_line(tmp_path):
    save(Inverse(), tmp_path / "a.pt")
    extractor = Custom(path=str(tmp_path / "a.pt"))
    extractor.prepare("cpu")
    images = torch.ones(5, 1, 2, 2, dtype=torch.uint8)
    images[1, 0, 0, 0] = images[4] = 0
    with pytest.raises(ConfigError) as caught:
        extract_batch(extractor, images, range(5))
    assert str(caught.value) == (
        "extractor=custom: returns features that are NaN or infinite, of 2 of 5 images; repair it"
    )
