"""Networks in whose features images are compared: each has a name, which is part of that of a distance."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.models import inception_v3

from fukami.engine import pretrained
from fukami.engine.supervised import IMAGENET_MEAN, IMAGENET_STD
from fukami.errors import Error

INCEPTION_PREFIXES = ("pt_inception", "inception_v3")  # what files are called: FID's network before torchvision's
INPUT_SIZES = {"inception": 299, "vgg": 224}  # pixels of the images that they were trained on
PIXEL_GRID_SIZE = 8  # pixels of the images that are compared as they are
LEGIBLE_PROBABILITY = 0.95  # the probability from which on a digit counts as legible
BATCH_SIZE = 20  # images at a time, of which VGG keeps 13 MB each


@dataclass(frozen=True)
class FeatureExtractor:
    """What is seen in images.

    Attributes:
        name: of the features: ``inception``, ``torchvision_inception``, ``vgg19``, ``vgg16``, ``digits`` or ``pixels``.
        network: images ``(N, C, H, W)`` in 0..255 to features ``(N, F)``.
        classifier: the layer that makes a digit's scores of them, where it is digits that are seen.
    """

    name: str
    network: nn.Module
    classifier: nn.Module | None = None

    @torch.inference_mode()
    def extract(self, images: Tensor, device: torch.device) -> Tensor:
        """The features ``(N, F)`` of images ``(N, C, H, W)`` uint8, on the processor."""
        network = self.network.to(device)
        parts = torch.split(images, BATCH_SIZE)
        return torch.cat([network(part.to(device).float()).float().cpu() for part in parts])

    def build_extractors(self, device: torch.device) -> tuple[Callable[[Tensor], Tensor], ...]:
        """How images are compared, each as :meth:`see`: by these features, and as they are, 8×8 pixels small."""
        return partial(self.extract, device=device), partial(
            FeatureExtractor("pixels", PixelFeatures()).extract, device=device
        )

    @torch.inference_mode()
    def measure_legibility(self, features: Tensor) -> dict[str, float]:
        """Of digits: the share that are legible (``legible``), and how many different ones there are (``classes``)."""
        if self.classifier is None:
            return {}
        best, digit = self.classifier.cpu()(features).softmax(1).max(1)
        return {"legible": float((best > LEGIBLE_PROBABILITY).double().mean()), "classes": int(digit.unique().numel())}


def load_feature_extractor(name: str, size: int, channels: int) -> FeatureExtractor:
    """The network that is asked for.

    Args:
        name: ``digits``, ``pixels``, ``inception``, ``vgg``, or a file of Inception v3 (as FID has it, or torchvision)
            or VGG. ``auto``: ``digits`` for grey images of 28×28; otherwise the first of ``inception`` and ``vgg``
            whose weights lie where data sets are looked for; ``pixels`` where none do.
        size, channels: of the images.

    Raises:
        Error: there is no such file, or it holds another network.
    """
    if name == "auto":
        name = (
            "digits"
            if (size, channels) == (28, 1)
            else "inception"
            if pretrained.find_weights_file(*INCEPTION_PREFIXES)
            else "vgg"
        )
        name = "pixels" if name == "vgg" and not pretrained.load_vgg("")[1] else name
    if name == "digits":
        return _build_digits()
    if name == "pixels":
        return FeatureExtractor("pixels", PixelFeatures())
    if name == "inception":
        file = pretrained.find_weights_file(*INCEPTION_PREFIXES)
        if file is None:
            raise Error(f"there is no file {'* or '.join(INCEPTION_PREFIXES)}* among the weights; give the path of one")
        return _build_inception(pretrained.read_state_dict(file), str(file))
    if name == "vgg":
        return _build_vgg("")
    tensors = pretrained.read_state_dict(Path(name))
    return _build_inception(tensors, name) if any(key.startswith("Mixed_7c.") for key in tensors) else _build_vgg(name)


class PixelFeatures(nn.Module):
    """The images themselves, 8×8 pixels small."""

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` in 0..255 to ``(N, 64 C)`` in 0..1."""
        return F.adaptive_avg_pool2d(images / 255, PIXEL_GRID_SIZE).flatten(1)


class PooledFeatures(nn.Module):
    """The average of a network's last maps, of images at the size that it was trained on: it knows no other scale."""

    def __init__(self, layers: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], input_size: int) -> None:
        super().__init__()
        self.layers, self.input_size = layers.eval(), input_size
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` in 0..255 to ``(N, F)``."""
        images = F.interpolate(images, (self.input_size, self.input_size), mode="bilinear", align_corners=False)
        maps: Tensor = self.layers((images.expand(-1, 3, -1, -1) - self.mean) / self.std)  # type: ignore[operator]
        return maps.mean((2, 3)) if maps.ndim == 4 else maps


class FIDInceptionV3(nn.Module):
    """Inception v3 with the poolings of the network that FID was defined with, which are not torchvision's.

    Averages leave the frame of zeros out, and the last module takes the maximum where the others average.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, 299, 299)`` to ``(N, 2048)``."""
        with FIDPoolingMode():
            return self.network(images)  # type: ignore[no-any-return]


class FIDPoolingMode(TorchFunctionMode):
    """In which averages are taken as in :class:`AsDefined`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Call a function of torch."""
        kwargs = dict(kwargs or {})
        if func is not F.avg_pool2d:
            return func(*args, **kwargs)
        if args[0].shape[1] == 2048:  # so many maps enter the last module alone
            return F.max_pool2d(*args, **kwargs)
        return func(*args, **kwargs, count_include_pad=False)


def _build_inception(tensors: dict[str, Tensor], source: str) -> FeatureExtractor:
    """Inception v3: of 1,008 classes the network of 2015 that FID was defined with, of 1,000 torchvision's."""
    classes = len(tensors.get("fc.bias", ()))
    if classes not in (1000, 1008):
        raise Error(f"{source} is not of Inception v3: it should have scores of 1,000 or 1,008 classes, not {classes}")
    network = inception_v3(weights=None, num_classes=classes, aux_logits=False, init_weights=False)
    tensors = {key: value for key, value in tensors.items() if not key.startswith("AuxLogits.")}
    wrong = [f"{key} {what}" for key, what in pretrained.find_mismatches(tensors, network.state_dict())]
    if wrong:
        raise Error(f"{source} does not fit Inception v3: {'; '.join(wrong)}")
    network.load_state_dict(tensors, strict=False)
    network.fc = nn.Identity()
    defined = classes == 1008
    layers = FIDInceptionV3(network.eval()) if defined else network
    name = "inception" if defined else "torchvision_inception"
    return FeatureExtractor(name, PooledFeatures(layers, (0.5,) * 3, (0.5,) * 3, INPUT_SIZES["inception"]))


def _build_vgg(given: str) -> FeatureExtractor:
    """VGG-19 or VGG-16, the average of its last maps."""
    from fukami import models

    name, tensors = pretrained.load_vgg(given)
    if not tensors:
        raise Error(
            "there is no file vgg19* or vgg16* among the weights; give the path of one, or --eval-features pixels"
        )
    network = getattr(models, name)(1, hidden=0)
    network.load_state_dict(tensors, strict=False)
    return FeatureExtractor(name, PooledFeatures(network.features, IMAGENET_MEAN, IMAGENET_STD, INPUT_SIZES["vgg"]))


def _build_digits() -> FeatureExtractor:
    """The shipped DeepConvNet, up to its last layer."""
    from fukami.engine import checkpoint

    task = checkpoint.load("deep-convnet", device="cpu")
    *layers, scores = task.model.children()
    return FeatureExtractor("digits", nn.Sequential(ToGrayscale(), *layers).eval(), scores)


class ToGrayscale(nn.Module):
    """What DeepConvNet is given: grey from 0 to 1."""

    def forward(self, images: Tensor) -> Tensor:
        """Divide by 255."""
        return images.mean(1, keepdim=True) / 255
