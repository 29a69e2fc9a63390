"""Tests of the fast 3×3 convolution against the direct one in float64."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fukami.quantization.winograd import MIN_TILES, WinogradConv2d, replace_convolutions

SHAPES = [
    (64, 48, 48, 6, 7),  # Connect Four, more tiles than a group
    (40, 16, 33, 4, 4),  # no incomplete tile; channels that are no multiple of a vector
    (33, 17, 16, 1, 1),
    (40, 16, 24, 2, 9),
    (2, 20, 16, 19, 19),
    (1, 16, 16, 37, 50),
]


def convolve_exactly(conv, inputs):
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv2d(inputs.double(), conv.weight.double(), bias, padding=1).float()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_direct_convolution(shape, bias):
    torch.manual_seed(0)
    count, channels, outputs, height, width = shape
    conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=bias)
    inputs = torch.randn(count, channels, height, width)
    with torch.inference_mode():
        layer = WinogradConv2d(conv)
        for values in (inputs, inputs.to(memory_format=torch.channels_last), inputs.transpose(2, 3)):
            torch.testing.assert_close(layer(values), convolve_exactly(conv, values), rtol=1e-5, atol=2e-5)


def test_few_tiles_and_an_empty_batch_are_convolved_directly():
    conv = nn.Conv2d(16, 16, 3, padding=1)
    layer = WinogradConv2d(conv)
    with torch.inference_mode():
        for count in (0, 1, MIN_TILES - 1):
            inputs = torch.randn(count, 16, 4, 4)
            assert torch.equal(layer(inputs), conv(inputs))


def test_threads_do_not_disturb_each_other():
    torch.manual_seed(0)
    layer = WinogradConv2d(nn.Conv2d(32, 32, 3, padding=1))
    inputs = torch.randn(8, 64, 32, 8, 8)

    def convolve(values):
        with torch.inference_mode():
            return layer(values)

    expected = [convolve(values) for values in inputs]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(convolve, inputs.repeat(8, 1, 1, 1, 1)))
    assert all(torch.equal(result, expected[index % 8]) for index, result in enumerate(results))


def test_only_convolutions_that_it_computes_are_replaced():
    kept = [
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 3),  # no padding
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 16, 3, padding=1, dtype=torch.bfloat16),
        nn.Conv2d(16, 16, (3, 1), padding=(1, 0)),
        nn.Conv2d(3, 64, 3, padding=1),
    ]
    network = nn.Sequential(*kept, nn.Sequential(nn.Conv2d(16, 32, 3, padding=1)))
    replace_convolutions(network)
    assert list(network[:-1]) == kept
    assert isinstance(network[-1][0], WinogradConv2d)
