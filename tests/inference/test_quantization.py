"""inference/quantization.py without a model of OpenVINO: the search and what it ranks convolutions by."""

import pytest
import torch
from torch import nn

from inference.quantization import Quality, search, sensitivities

NAMES = [f"convolution {place}" for place in range(51)]
EXACT, BOUNDS = Quality(0.8, 0.99), Quality(0.005, 0.002)


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 7, 12, 31, 32])
def test_the_search_finds_the_fewest_in_float(needed):
    def attempt(in_float):
        assert list(in_float) == NAMES[: len(in_float)]
        return f"model {len(in_float)}", EXACT if len(in_float) >= needed else Quality(0.79, 0.99)

    attempts = search(NAMES, attempt, EXACT, BOUNDS)
    assert attempts[-1].model == f"model {needed}" and len(attempts[-1].in_float) == needed
    assert attempts[0].in_float == []
    counts = [len(one.in_float) for one in attempts]
    assert len(counts) == len(set(counts)) <= 11  # none is tried twice


@pytest.mark.parametrize(
    ("quality", "is_within"), [((0.7951, 0.99), True), ((0.7949, 0.99), False), ((0.8, 0.9875), False)]
)
def test_both_bounds_count(quality, is_within):
    attempts = search(NAMES, lambda in_float: ("model", Quality(*quality)), EXACT, BOUNDS)
    assert (len(attempts) == 1) == is_within and EXACT.loss(attempts[-1].quality).is_within(BOUNDS) == is_within


def test_convolutions_that_lose_most_are_known():
    """The second one has a weight of 1,000 for a channel that is 0: in steps of 1,000 / 127 its other weights are 0."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)]
    layers[0].weight.data[1] = layers[0].bias.data[1] = 0
    layers[1].weight.data[0, 1, 0, 0] = 1000
    weights = [layer.weight.data.clone() for layer in layers]

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(reversed(layers))  # another order than the one in which they run

        def forward(self, image):
            values = image.permute(0, 3, 1, 2)[:, :1] / 255
            for layer in layers:
                values = layer(values)
            return values[:, 0], values.amax((1, 2, 3))

    costs = sensitivities(Graph(), torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8))
    assert min(costs) > 0 and costs[1] > 100 * max(costs[0], costs[2])
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, weights, strict=True))
