"""Networks in whose features pictures are compared: each has a name, which is part of that of a distance."""

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

from fukami.engine import weights as engine_weights
from fukami.engine.epochs import MEAN, STD
from fukami.errors import Error

INCEPTION = ("pt_inception", "inception_v3")  # what files are called: FID's network before torchvision's
SIDES = {"inception": 299, "vgg": 224}  # pixels of the pictures that they were trained on
SMALL = 8  # pixels of the pictures that are compared as they are
SURE = 0.95  # the probability from which on a digit counts as legible
CHUNK = 20  # pictures at a time, of which VGG keeps 13 MB each


@dataclass(frozen=True)
class Perception:
    """What is seen in pictures.

    Attributes:
        name: of the features: ``inception``, ``torchvision_inception``, ``vgg19``, ``vgg16``, ``digits`` or ``pixels``.
        network: pictures ``(N, C, H, W)`` in 0..255 to features ``(N, F)``.
        scores: the layer that makes a digit's scores of them, where it is digits that are seen.
    """

    name: str
    network: nn.Module
    scores: nn.Module | None = None

    @torch.inference_mode()
    def see(self, pictures: Tensor, device: torch.device) -> Tensor:
        """The features ``(N, F)`` of pictures ``(N, C, H, W)`` uint8, on the processor."""
        network = self.network.to(device)
        parts = torch.split(pictures, CHUNK)
        return torch.cat([network(part.to(device).float()).float().cpu() for part in parts])

    def looks(self, device: torch.device) -> tuple[Callable[[Tensor], Tensor], ...]:
        """How pictures are compared, each as :meth:`see`: by these features, and as they are, 8×8 pixels small."""
        return partial(self.see, device=device), partial(Perception("pixels", Pixels()).see, device=device)

    @torch.inference_mode()
    def legible(self, features: Tensor) -> dict[str, float]:
        """Of digits: the share that are legible (``legible``), and how many different ones there are (``classes``)."""
        if self.scores is None:
            return {}
        best, digit = self.scores.cpu()(features).softmax(1).max(1)
        return {"legible": float((best > SURE).double().mean()), "classes": int(digit.unique().numel())}


def find(given: str, size: int, channels: int) -> Perception:
    """The network that is asked for.

    Args:
        given: ``digits``, ``pixels``, ``inception``, ``vgg``, or a file of Inception v3 (as FID has it, or torchvision)
            or VGG. ``auto``: ``digits`` for grey pictures of 28×28; otherwise the first of ``inception`` and ``vgg``
            whose weights lie where data sets are looked for; ``pixels`` where none do.
        size, channels: of the pictures.

    Raises:
        Error: there is no such file, or it holds another network.
    """
    if given == "auto":
        given = "digits" if (size, channels) == (28, 1) else "inception" if engine_weights.lying(*INCEPTION) else "vgg"
        given = "pixels" if given == "vgg" and not engine_weights.vgg("")[1] else given
    if given == "digits":
        return _digits()
    if given == "pixels":
        return Perception("pixels", Pixels())
    if given == "inception":
        file = engine_weights.lying(*INCEPTION)
        if file is None:
            raise Error(f"there is no file {'* or '.join(INCEPTION)}* among the weights; give the path of one")
        return _inception(engine_weights.read(file), str(file))
    if given == "vgg":
        return _vgg("")
    tensors = engine_weights.read(Path(given))
    return _inception(tensors, given) if any(key.startswith("Mixed_7c.") for key in tensors) else _vgg(given)


class Pixels(nn.Module):
    """The pictures themselves, 8×8 pixels small."""

    def forward(self, pictures: Tensor) -> Tensor:
        """``(N, C, H, W)`` in 0..255 to ``(N, 64 C)`` in 0..1."""
        return F.adaptive_avg_pool2d(pictures / 255, SMALL).flatten(1)


class Averaged(nn.Module):
    """The average of a network's last maps, of pictures at the size that it was trained on: it knows no other scale."""

    def __init__(self, layers: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], side: int) -> None:
        super().__init__()
        self.layers, self.side = layers.eval(), side
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """``(N, C, H, W)`` in 0..255 to ``(N, F)``."""
        pictures = F.interpolate(pictures, (self.side, self.side), mode="bilinear", align_corners=False)
        maps: Tensor = self.layers((pictures.expand(-1, 3, -1, -1) - self.mean) / self.std)  # type: ignore[operator]
        return maps.mean((2, 3)) if maps.ndim == 4 else maps


class AsDefined(nn.Module):
    """Inception v3 with the poolings of the network that FID was defined with, which are not torchvision's.

    Averages leave the frame of zeros out, and the last module takes the maximum where the others average.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        """``(N, 3, 299, 299)`` to ``(N, 2048)``."""
        with Poolings():
            return self.network(pictures)  # type: ignore[no-any-return]


class Poolings(TorchFunctionMode):
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


def _inception(tensors: dict[str, Tensor], source: str) -> Perception:
    """Inception v3: of 1,008 classes the network of 2015 that FID was defined with, of 1,000 torchvision's."""
    classes = len(tensors.get("fc.bias", ()))
    if classes not in (1000, 1008):
        raise Error(f"{source} is not of Inception v3: it should have scores of 1,000 or 1,008 classes, not {classes}")
    network = inception_v3(weights=None, num_classes=classes, aux_logits=False, init_weights=False)
    tensors = {key: value for key, value in tensors.items() if not key.startswith("AuxLogits.")}
    wrong = [f"{key} {what}" for key, what in engine_weights.unfit(tensors, network.state_dict())]
    if wrong:
        raise Error(f"{source} does not fit Inception v3: {'; '.join(wrong)}")
    network.load_state_dict(tensors, strict=False)
    network.fc = nn.Identity()
    defined = classes == 1008
    layers = AsDefined(network.eval()) if defined else network
    name = "inception" if defined else "torchvision_inception"
    return Perception(name, Averaged(layers, (0.5,) * 3, (0.5,) * 3, SIDES["inception"]))


def _vgg(given: str) -> Perception:
    """VGG-19 or VGG-16, the average of its last maps."""
    from fukami import models

    name, tensors = engine_weights.vgg(given)
    if not tensors:
        raise Error("there is no file vgg19* or vgg16* among the weights; give the path of one, or --judge pixels")
    network = getattr(models, name)(1, hidden=0)
    network.load_state_dict(tensors, strict=False)
    return Perception(name, Averaged(network.features, MEAN, STD, SIDES["vgg"]))


def _digits() -> Perception:
    """The shipped DeepConvNet, up to its last layer."""
    from fukami.engine import checkpoint

    task = checkpoint.load("deep-convnet", device="cpu")
    *layers, scores = task.model.children()
    return Perception("digits", nn.Sequential(Scale(), *layers).eval(), scores)


class Scale(nn.Module):
    """What DeepConvNet is given: grey from 0 to 1."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Divide by 255."""
        return pictures.mean(1, keepdim=True) / 255
