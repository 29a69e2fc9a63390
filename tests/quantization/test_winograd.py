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


@pytest.fixture(autouse=True)
def one_thread():
    """The number of threads with which the layer does not compute the direct convolution."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


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


def test_rounding_is_small_for_many_channels_of_positive_inputs():
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 32, 3, padding=1)
    inputs = torch.randn(4, 256, 19, 19).relu() * 10 + 3
    with torch.inference_mode():
        expected = convolve_exactly(conv, inputs)
        assert (WinogradConv2d(conv)(inputs) - expected).abs().max() < 3e-5 * expected.abs().max()


@pytest.mark.parametrize(("count", "num_threads"), [(0, 1), (1, 1), (MIN_TILES - 1, 1), (MIN_TILES, 2)])
def test_few_tiles_and_several_threads_are_convolved_directly(count, num_threads):
    conv = nn.Conv2d(16, 16, 3, padding=1)
    inputs = torch.randn(count, 16, 4, 4)
    torch.set_num_threads(num_threads)
    with torch.inference_mode():
        assert torch.equal(WinogradConv2d(conv)(inputs), conv(inputs))


def test_inference_mode_and_no_grad_alternate():
    layer = WinogradConv2d(nn.Conv2d(24, 24, 3, padding=1))
    inputs = torch.randn(MIN_TILES, 24, 4, 4)
    with torch.inference_mode():
        expected = layer(inputs)
    with torch.no_grad():
        assert torch.equal(layer(inputs), expected)
    with torch.inference_mode():
        assert torch.equal(layer(inputs), expected)


def test_inputs_of_other_channels_or_dtypes_are_errors():
    layer = WinogradConv2d(nn.Conv2d(48, 16, 3, padding=1))
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="48 channels"):
            layer(torch.randn(64, 16, 4, 4))
        with pytest.raises(RuntimeError, match=r"[Dd]ouble"):
            layer(torch.randn(64, 48, 4, 4, dtype=torch.float64))


def test_threads_do_not_disturb_each_other():
    torch.manual_seed(0)
    layer = WinogradConv2d(nn.Conv2d(32, 32, 3, padding=1))
    inputs = torch.randn(8, 64, 32, 8, 8)

    def convolve(values):
        with torch.inference_mode():
            return layer(values)

    expected = [convolve(values) for values in inputs]
    with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
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
