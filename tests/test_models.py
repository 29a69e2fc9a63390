"""Every model: its shapes, its size, its gradients, and what its paper's figure says."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fukami.models import deep_convnet
from fukami.ops.stem import StemConv2d

# counted by hand from the figure: 160 + 2320 + 4640 + 9248 + 18496 + 36928 + 51250 + 510
CASES = [(deep_convnet, 123_552, (1, 28, 28), 10)]


@pytest.mark.parametrize(
    ("model", "parameters", "shape", "classes"), CASES, ids=lambda case: getattr(case, "__name__", "")
)
def test_shapes_size_and_gradients(model, parameters, shape, classes):
    network = model()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    pictures = torch.rand(3, *shape)
    scores = network(pictures)
    assert scores.shape == (3, classes)
    F.cross_entropy(scores, torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_deep_convnet_follows_the_figure():
    """The same function as the book's order of layers, conv - relu - conv - relu - pool."""
    torch.manual_seed(0)
    network = deep_convnet().eval()
    layers = [layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]
    pictures = torch.rand(4, 1, 28, 28)
    x, sides = pictures, []
    for number, layer in enumerate(layers[:6]):
        x = F.conv2d(x, layer.weight, layer.bias, padding=2 if number == 3 else 1).relu()
        if number % 2:
            x = F.max_pool2d(x, 2)
            sides.append(x.shape[-1])
    assert sides == [14, 8, 4]
    x = F.linear(x.flatten(1), layers[6].weight, layers[6].bias).relu()
    torch.testing.assert_close(network(pictures), F.linear(x, layers[7].weight, layers[7].bias))


def test_deep_convnet_is_initialised_as_he_says():
    """The standard deviation is the root of 2 over the fan-in, which the note typed in: 9, 144, 144, 288, 288, ..."""
    torch.manual_seed(0)
    layers = [layer for layer in deep_convnet(hidden=5000) if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer, fan_in in zip(layers, [9, 144, 144, 288, 288, 576, 1024, 5000], strict=True):
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
        assert not layer.bias.any()


@pytest.mark.parametrize(("size", "channels", "classes"), [(32, 3, 4), (8, 1, 2), (65, 1, 100)])
def test_deep_convnet_takes_other_pictures(size, channels, classes):
    assert deep_convnet(classes, size=size, channels=channels)(torch.rand(2, channels, size, size)).shape == (
        2,
        classes,
    )


def test_deep_convnet_refuses_tiny_pictures():
    with pytest.raises(ValueError, match="at least 4×4"):
        deep_convnet(size=3)


def test_stem_pads_with_zeros_without_changing_the_result(monkeypatch):
    """The CUDA path, taken on the CPU: eight channels, five of them zero, are the same convolution."""
    torch.manual_seed(0)
    stem = StemConv2d(3, 6, 3, stride=2, padding=1)
    pictures = torch.rand(2, 3, 9, 9)
    plain = F.conv2d(pictures, stem.weight, stem.bias, stride=2, padding=1)
    torch.testing.assert_close(stem(pictures), plain)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.float32)
    torch.testing.assert_close(stem(pictures), plain)
