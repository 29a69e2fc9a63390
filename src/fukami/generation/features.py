"""Feature extractors for the evaluation of generated images; their names are part of the metric names."""

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

from fukami.engine import pretrained, state_dicts
from fukami.engine.supervised import IMAGENET_MEAN, IMAGENET_STD
from fukami.errors import Error

INCEPTION_PREFIXES = ("pt_inception", "inception_v3")  # file name prefixes: FID's weights before torchvision's
INPUT_SIZES = {"inception": 299, "vgg": 224}  # image side in pixels in the training of the weights
PIXEL_GRID_SIZE = 8  # side in pixels of the downsampled images of the pixel features
LEGIBLE_PROBABILITY = 0.95  # minimum class probability of a legible digit
BATCH_SIZE = 20  # images per batch; VGG needs 13 MB for each


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that computes feature vectors of images.

    Attributes:
        name: ``inception``, ``torchvision_inception``, ``vgg19``, ``vgg16``, ``digits`` or ``pixels``.
        network: maps images ``(N, C, H, W)`` in 0..255 to features ``(N, F)``.
        classifier: maps features to the logits of the digits; only for ``digits``.
    """

    name: str
    network: nn.Module
    classifier: nn.Module | None = None

    @torch.inference_mode()
    def extract(self, images: Tensor, device: torch.device) -> Tensor:
        """Compute the features ``(N, F)``, on the CPU, of images ``(N, C, H, W)`` uint8."""
        network = self.network.to(device)
        chunks = torch.split(images, BATCH_SIZE)
        return torch.cat([network(chunk.to(device).float()).float().cpu() for chunk in chunks])

    def build_extractors(self, device: torch.device) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Return functions like :meth:`extract` for these features and for the pixel features."""
        return partial(self.extract, device=device), partial(
            FeatureExtractor("pixels", PixelFeatures()).extract, device=device
        )

    @torch.inference_mode()
    def measure_legibility(self, features: Tensor) -> dict[str, float]:
        """Return the fraction of legible digits and the number of predicted classes.

        The metrics are ``legible_fraction`` and ``num_predicted_classes``; there are none without a classifier.
        """
        if self.classifier is None:
            return {}
        probabilities, digits = self.classifier.cpu()(features).softmax(1).max(1)
        return {
            "legible_fraction": float((probabilities > LEGIBLE_PROBABILITY).double().mean()),
            "num_predicted_classes": int(digits.unique().numel()),
        }


def load_feature_extractor(name: str, size: int, channels: int) -> FeatureExtractor:
    """Load a feature extractor by name or from a weights file.

    Args:
        name: ``digits``, ``pixels``, ``inception``, ``vgg``, or a weights file of Inception v3 (FID's or torchvision's)
            or VGG. ``auto``: ``digits`` for 28×28 grayscale images; otherwise the first of ``inception`` and ``vgg``
            with weights in a dataset folder; otherwise ``pixels``.
        size: side of the images in pixels.
        channels: number of channels of the images.

    Raises:
        Error: the file is missing or contains another network.
    """
    if name == "auto":
        name = (
            "digits"
            if (size, channels) == (28, 1)
            else "inception"
            if state_dicts.find_weights_file(*INCEPTION_PREFIXES)
            else "vgg"
        )
        name = "pixels" if name == "vgg" and not pretrained.load_vgg("")[1] else name
    if name == "digits":
        return _build_digits()
    if name == "pixels":
        return FeatureExtractor("pixels", PixelFeatures())
    if name == "inception":
        file = state_dicts.find_weights_file(*INCEPTION_PREFIXES)
        if file is None:
            raise Error(
                f"no weights file {'* or '.join(INCEPTION_PREFIXES)}* found; specify its path as --eval-features"
            )
        return _build_inception(state_dicts.read_state_dict(file), str(file))
    if name == "vgg":
        return _build_vgg("")
    tensors = state_dicts.read_state_dict(Path(name))
    return _build_inception(tensors, name) if any(key.startswith("Mixed_7c.") for key in tensors) else _build_vgg(name)


class PixelFeatures(nn.Module):
    """Images downsampled to 8×8 pixels, as features."""

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` in 0..255 to ``(N, 64 C)`` in 0..1."""
        return F.adaptive_avg_pool2d(images / 255, PIXEL_GRID_SIZE).flatten(1)


class PooledFeatures(nn.Module):
    """Global average of a network's last feature maps.

    Images are resized to the network's training size, since its features depend on scale.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], input_size: int) -> None:
        super().__init__()
        self.layers, self.input_size = layers.eval(), input_size
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` in 0..255 to ``(N, F)``."""
        images = F.interpolate(images, (self.input_size, self.input_size), mode="bilinear", align_corners=False)
        maps: Tensor = self.layers((images.expand(-1, 3, -1, -1) - self.mean) / self.std)
        return maps.mean((2, 3)) if maps.ndim == 4 else maps


class FIDInceptionV3(nn.Module):
    """Inception v3 with the pooling layers of the original FID network, which differ from torchvision's.

    Average pooling excludes the padding, and the last module uses max pooling instead.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, 3, 299, 299)`` to ``(N, 2048)``."""
        with FIDPoolingMode():
            features: Tensor = self.network(images)
        return features


class FIDPoolingMode(TorchFunctionMode):
    """Mode in which average pooling works as described for :class:`FIDInceptionV3`."""

    def __torch_function__(
        self, func: Callable[..., object], types: Iterable[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:  # fmt: skip
        """Call ``func``; replace average pooling."""
        kwargs = dict(kwargs or {})
        if func is not F.avg_pool2d:
            return func(*args, **kwargs)
        if args[0].shape[1] == 2048:  # only the last module has this many input channels
            return F.max_pool2d(*args, **kwargs)
        return func(*args, **(kwargs | {"count_include_pad": False}))


def _build_inception(tensors: dict[str, Tensor], source: str) -> FeatureExtractor:
    """Build Inception v3: the original FID network (2015) for 1,008 classes, torchvision's for 1,000."""
    num_classes = len(tensors.get("fc.bias", ()))
    if num_classes not in (1000, 1008):
        raise Error(f"{source} is not Inception v3: it should have 1,000 or 1,008 classes, not {num_classes}")
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
        network = inception_v3(weights=None, num_classes=num_classes, aux_logits=False, init_weights=False)
    tensors = {key: value for key, value in tensors.items() if not key.startswith("AuxLogits.")}
    mismatches = [f"{key} {problem}" for key, problem in pretrained.find_mismatches(tensors, network.state_dict())]
    if mismatches:
        raise pretrained.build_mismatch_error(source, "Inception v3", tensors, mismatches)
    network.load_state_dict(tensors, strict=False)
    network.fc = nn.Identity()
    is_fid_network = num_classes == 1008
    layers = FIDInceptionV3(network.eval()) if is_fid_network else network
    name = "inception" if is_fid_network else "torchvision_inception"
    return FeatureExtractor(name, PooledFeatures(layers, (0.5,) * 3, (0.5,) * 3, INPUT_SIZES["inception"]))


def _build_vgg(path: str) -> FeatureExtractor:
    """Build VGG-19 or VGG-16 with global average pooling of the last feature maps."""
    from fukami import models

    name, tensors = pretrained.load_vgg(path)
    if not tensors:
        raise Error(
            "no weights file vgg19* or vgg16* found; specify its path as --eval-features, or use --eval-features pixels"
        )
    with torch.random.fork_rng(devices=[]):  # as above
        network = getattr(models, name)(1, hidden=0)
    network.load_state_dict(tensors, strict=False)
    return FeatureExtractor(name, PooledFeatures(network.features, IMAGENET_MEAN, IMAGENET_STD, INPUT_SIZES["vgg"]))


MAX_DIGIT_SIZE = 32  # pixels; the feature maps of larger images do not fit the fully connected layer


def _build_digits() -> FeatureExtractor:
    """Build the bundled DeepConvNet without its last layer."""
    from fukami.engine.load_run import load_task

    num_threads = torch.get_num_threads()
    task = load_task("deep-convnet", device="cpu")
    torch.set_num_threads(num_threads)  # loading a run limits them to the processors, but a resumed run keeps its own
    *layers, classifier_layer = task.model.children()
    return FeatureExtractor("digits", nn.Sequential(ToGrayscale(), *layers).eval(), classifier_layer)


class ToGrayscale(nn.Module):
    """Preprocessing of DeepConvNet: grayscale in 0..1, at most 32×32."""

    def forward(self, images: Tensor) -> Tensor:
        """Average the channels, divide by 255, and resize larger images to 28×28."""
        digits = images.mean(1, keepdim=True) / 255
        if digits.shape[2] > MAX_DIGIT_SIZE:
            digits = F.interpolate(digits, (28, 28), mode="bilinear", antialias=True)
        return digits
