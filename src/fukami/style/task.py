"""Style: an image is changed until it shows what one image shows, painted as others are."""

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.engine.task import OptimizerFactory, Task
from fukami.errors import Error, convert_memory_errors
from fukami.image import io as image_io
from fukami.layers.activation_scaling import rescale_activations
from fukami.quantization import half_precision
from fukami.style import losses as style_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fukami.engine.runtime import Runtime

MIN_SIDE = 32  # pixels that a side has at least, four poolings before the last map
COARSEST_SIDE = 128  # pixels of the longer side from which on an image has a coarser level
CALIBRATION_SIZE = 256  # pixels of the squares that the network is calibrated on
STYLE_WEIGHT = 300.0  # weight of the style, of which the content has as many as it has activations, at strength 1
RANGE_PENALTY_WEIGHT = 100.0  # weight of the squares by which values lie outside what a file can hold
TV_WEIGHT = 1.0  # weight of the total variation, likewise, at tv 1
IMAGENET_MEAN, IMAGENET_STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet's colours, as VGG's weights expect them
LUMINANCE_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


class StyleInputs(NamedTuple):
    """What to paint, and the images to paint it like: ``(1, 3, H, W)`` uint8 each."""

    content: Tensor
    styles: tuple[Tensor, ...]


class ImagePyramid(nn.Module):
    """The image at each of its sizes, from coarse to fine, and the style that it should have at each of them.

    Args:
        sizes: height and width at each level.
        num_channels: 1 grey, 3 colour; values are 0..1, and may lie outside on the way.
        style_channels: of the maps that the style is read from.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], num_channels: int, style_channels: Sequence[int]) -> None:
        super().__init__()
        self.images = nn.ParameterList([nn.Parameter(torch.zeros(num_channels, *size)) for size in sizes])
        self.register_buffer("level", torch.tensor(0.0))
        for number in range(len(sizes)):
            for layer, count in enumerate(style_channels, 1):
                self.register_buffer(f"style{number}_{layer}", torch.zeros(count, count))
        self.num_layers = len(style_channels)

    def get_style_targets(self, level: int) -> list[Tensor]:
        """The Gram matrices ``(C, C)`` of the style at a level."""
        return [self.get_buffer(f"style{level}_{layer}") for layer in range(1, self.num_layers + 1)]

    def get_image(self, level: int) -> Tensor:
        """The image as it is, ``(depth, H, W)``, at the size of a level."""
        own = self.images[int(self.level)]  # type: ignore[arg-type]
        size = self.images[level].shape[1:]
        return own if own.shape[1:] == size else resize_image(own, size)


@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """How images are painted.

    Attributes:
        longer_side: pixels of the longer side of images that are asked about; 0: as many as they have.
        style_weights: how much of each style there is.
        strength: of the style; 1: as much as suits most images.
        tv_weight: weight of the total variation, which makes an image smoother; 0: none.
        init: begin with the content, or with noise.
        colors: of the style, or those that the content has.
        levels: sizes from coarse to fine, each twice the one before it, fewer where one would be too small; 0: as many
            as it takes to begin with 128 to 256 pixels.
        iterations: updates at the finest of them, and half as many at each other.
    """

    longer_side: int = 512
    style_weights: tuple[float, ...] = (1.0,)
    strength: float = 1.0
    tv_weight: float = 0.0
    init: Literal["content", "noise"] = "content"
    colors: Literal["style", "content"] = "style"
    levels: int = 0
    iterations: int = 80


class StyleTransferTask(Task):
    """One image, whose pixels are the parameters; its style is the Gram matrices of a network's maps.

    Args:
        model: gives the maps of the style and of the content of normalised images ``(1, 3, H, W)``, says in
            ``channels`` how many the first ones have; ``features`` are its layers, a chain.
        size: width and height of the image.
        options: how it is painted.
        optimizer: makes the optimizer of the image.
        eval_every: iterations between two evaluations.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int],
        options: StyleOptions,
        optimizer: OptimizerFactory,
        eval_every: int = 50,
    ) -> None:
        super().__init__(model, optimizer=optimizer, eval_every=eval_every)
        self.size, self.options = size, options
        self.level_sizes = compute_level_sizes(size, options.levels)
        coarser = -(-options.iterations // 2)
        self.level_starts = [coarser * level for level in range(len(self.level_sizes))]  # the first step at each size
        self.pyramid = ImagePyramid(self.level_sizes, 1 if options.colors == "content" else 3, model.style_channels)  # type: ignore[arg-type]
        self.next_level = 0  # the level of the next step
        self.content_targets: dict[int, Tensor] = {}
        self.stylized_images: dict[Any, Image.Image] = {}

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device; an optimizer for each level, since the pixels are others."""
        self.runtime = runtime
        self.model = runtime.move_to_device(self.model).requires_grad_(False)
        self.ddp_model = self.training_model = self.model
        self.pyramid = self.pyramid.to(runtime.device)
        self.mean, self.std = (
            torch.tensor(value, device=runtime.device).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD)
        )
        self.optimizers = [runtime.prepare_optimizer(self.make_optimizer([image])) for image in self.pyramid.images]
        self.optimizer, self.scaler = self.optimizers[0], runtime.build_grad_scaler()

    def compile(self) -> None:
        """Stay as it is: each level would be compiled anew, which takes longer than its steps."""

    def get_stateful_objects(self) -> dict[str, Any]:
        """The image, the style, and an optimizer for each level."""
        optimizers = {f"optimizer {level}": optimizer for level, optimizer in enumerate(self.optimizers)}
        return {"model": self.model, "canvas": self.pyramid, "scaler": self.scaler, **optimizers}

    def get_modules(self) -> dict[str, nn.Module]:
        """The network, and the image with the style it is painted in."""
        return {"model": self.model, "canvas": self.pyramid}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Answer with another network and another canvas."""
        self.model, self.pyramid = modules["model"], modules["canvas"]  # type: ignore[assignment]

    def count_steps(self, train: Any) -> tuple[int, int]:
        """Updates in the whole training, and between two evaluations."""
        return self.level_starts[-1] + self.options.iterations, self.eval_every

    def count_work(self, step: int) -> float:
        """Pixels that were looked at before a step."""
        ends = [*self.level_starts[1:], math.inf]
        levels = zip(self.level_sizes, self.level_starts, ends, strict=True)
        return sum(max(min(step, end) - start, 0) * math.prod(size) for size, start, end in levels)

    @torch.no_grad()
    def initialize(self, inputs: StyleInputs) -> None:
        """Look at the images: bring the network's maps to one size, remember the styles, lay the content out."""
        content = self.preprocess_image(inputs.content)
        styles = [self.preprocess_image(each) for each in inputs.styles]
        if self.options.colors == "content":
            styles = [match_luminance(each, content) for each in styles]
        squares = [
            self.normalize_image(resize_image(each, (CALIBRATION_SIZE, CALIBRATION_SIZE)))
            for each in (content, *styles)
        ]
        rescale_activations(list(self.model.features), torch.cat(squares))  # type: ignore[arg-type]
        for level in range(len(self.level_sizes)):
            factor = max(self.level_sizes[level]) / max(self.level_sizes[-1])
            sides = [[max(MIN_SIDE, round(side * factor)) for side in each.shape[1:]] for each in styles]
            fitted = [self.normalize_image(resize_image(each, size)) for each, size in zip(styles, sides, strict=True)]
            grams = [list(map(style_losses.compute_gram_matrix, self.model(each)[0])) for each in fitted]
            for layer, target in enumerate(self.pyramid.get_style_targets(level)):
                each = torch.stack(
                    [share * own[layer] for share, own in zip(self.options.style_weights, grams, strict=True)]
                )
                target.copy_(each.sum(0) / sum(self.options.style_weights))
        self.initialize_image(content)

    @torch.no_grad()
    def initialize_image(self, content: Tensor) -> None:
        """Begin the image."""
        first = self.pyramid.images[0]
        first.copy_(
            resize_image(content, self.level_sizes[0])
            if self.options.init == "content"
            else torch.rand(first.shape).to(first)
        )

    def schedule(self, progress: float) -> float:
        """Know at which level the next step is; the learning rate stays as it is."""
        self.next_level = bisect.bisect(self.level_starts, round(progress * self.count_steps(None)[0])) - 1
        self.optimizer = self.optimizers[self.next_level]
        return super().schedule(progress)

    def step(self, batch: StyleInputs) -> dict[str, Tensor]:
        """One update of the image, which first goes on to the next level where it is time."""
        if self.next_level > int(self.pyramid.level):  # type: ignore[arg-type]
            self.advance_level(batch.content)
        return super().step(batch)

    @torch.no_grad()
    def advance_level(self, content: Tensor) -> None:
        """Go on at the level that is due, with those details of the content that were too fine for the one before."""
        before, size = self.level_sizes[int(self.pyramid.level)], self.level_sizes[self.next_level]  # type: ignore[arg-type]
        image = self.pyramid.get_image(self.next_level)
        if self.options.init == "content":
            seen = self.preprocess_image(content)
            image = image + resize_image(seen, size) - resize_image(resize_image(seen, before), size)
        self.pyramid.images[self.next_level].copy_(image)
        self.pyramid.level.fill_(self.next_level)  # type: ignore[operator]

    def compute_loss(self, batch: StyleInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of content and style at the level, and their weighted sum (equation 7)."""
        level = int(self.pyramid.level)  # type: ignore[arg-type]
        return self.compute_losses(self.pyramid.images[level], batch.content, level)

    def compute_losses(self, image: Tensor, content: Tensor, level: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The whole loss of an image ``(depth, H, W)`` and its parts, at the size of a level."""
        if level not in self.content_targets:
            with (
                torch.no_grad(),
                torch.autocast(self.runtime.device.type, enabled=False),
                half_precision.enable_float32_fallback(self.model),
            ):
                self.content_targets[level] = self.model(
                    self.normalize_image(resize_image(self.preprocess_image(content), self.level_sizes[level]))
                )[1]
        target = self.content_targets[level]
        with half_precision.enable_float32_fallback(self.model):
            maps, shown = self.training_model(self.normalize_image(image))
        parts = {
            "content_loss": style_losses.compute_content_loss(shown, target),
            "style_loss": style_losses.compute_style_loss(
                [style_losses.compute_gram_matrix(each) for each in maps], self.pyramid.get_style_targets(level)
            ),
        }
        whole = parts["content_loss"] + self.options.strength * STYLE_WEIGHT * target.numel() * parts["style_loss"]
        whole = whole + RANGE_PENALTY_WEIGHT * (image - image.clamp(0, 1)).square().sum()
        if self.options.tv_weight:
            parts["variation"] = style_losses.compute_total_variation(image)
            whole = whole + self.options.tv_weight * TV_WEIGHT * parts["variation"]
        return whole, {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[StyleInputs]) -> dict[str, float]:
        """The losses of the image at its full size, with values that a file can hold."""
        (batch,) = batches
        self.content_image = batch.content
        last = len(self.level_sizes) - 1
        loss, parts = self.compute_losses(self.pyramid.get_image(last).clamp(0, 1), batch.content, last)
        return {"loss": float(loss), **{name: float(part) for name, part in parts.items()}, "count": 1}

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Paint other images in this style: ``width``, ``height``, ``loss`` and its parts; :meth:`draw` shows them.

        ``inputs`` are paths, PIL images or arrays as :func:`fukami.image.io.read_image` takes them. An image that
        cannot be painted yields ``{"file", "error"}``.
        """
        answers: list[dict[str, Any]] = []
        self.stylized_images = {}
        for source in inputs:
            named = {"file": str(source)} if isinstance(source, str | Path) else {}
            try:
                with convert_memory_errors(named.get("file", "the image given")):
                    painting, found = self.stylize_image(load_image(source, self.options.longer_side))
            except Error as error:
                answers.append({**named, "error": str(error)})
                continue
            self.stylized_images[make_cache_key(source)] = painting.preview()
            width, height = painting.size
            answers.append({**named, "width": width, "height": height, **found})
        return answers

    def stylize_image(self, content: Tensor) -> "tuple[StyleTransferTask, dict[str, float]]":
        """Another image ``(1, 3, H, W)`` painted in this style, and its losses.

        Raises:
            fukami.Error: it is too narrow.
        """
        other = StyleTransferTask(self.model, (content.shape[3], content.shape[2]), self.options, self.make_optimizer)
        other.setup(replace(self.runtime, precision="float32"))  # the weights have theirs
        for level in range(len(other.level_sizes)):
            own = max(0, len(self.level_sizes) - len(other.level_sizes) + level)
            for target, mine in zip(
                other.pyramid.get_style_targets(level), self.pyramid.get_style_targets(own), strict=True
            ):
                target.copy_(mine)
        with torch.no_grad():
            other.initialize_image(other.preprocess_image(content))
        batch = StyleInputs(content, ())
        steps, _ = other.count_steps(None)
        for step in range(steps):
            other.schedule(step / steps)
            other.step(batch)
        return other, other.evaluate([batch])

    def draw_prediction(self, source: Any, prediction: dict[str, Any]) -> Image.Image:
        """The image, painted in this style."""
        if make_cache_key(source) not in self.stylized_images:
            self.predict([source])
        return self.stylized_images[make_cache_key(source)]

    def preview(self) -> Image.Image:
        """The image so far, at its full size, as it was evaluated last."""
        pixels = (
            (255 * self.pyramid.get_image(len(self.level_sizes) - 1).detach().float().clamp(0, 1)).round().byte().cpu()
        )
        if self.options.colors == "style":
            return Image.fromarray(pixels.permute(1, 2, 0).numpy())
        _, blue, red = Image.fromarray(self.content_image[0].permute(1, 2, 0).cpu().numpy()).convert("YCbCr").split()
        return Image.merge("YCbCr", (Image.fromarray(pixels[0].numpy()), blue, red)).convert("RGB")

    def plot_evaluation(self, batches: Iterable[StyleInputs]) -> "Iterator[tuple[str, Figure]]":
        """The content, the styles and the image side by side."""
        from fukami.image.plots import plot_image_row

        (batch,) = batches
        originals = [Image.fromarray(each[0].permute(1, 2, 0).cpu().numpy()) for each in (batch.content, *batch.styles)]
        names = ["content", *("style" for _ in batch.styles), "image"]
        yield "What it was painted from", plot_image_row([*originals, self.preview()], names)

    def preprocess_image(self, image: Tensor) -> Tensor:
        """An image ``(1, 3, H, W)`` uint8 as the canvas holds one: ``(depth, H, W)`` in 0..1."""
        values = image[0].to(self.runtime.device).float() / 255
        if self.options.colors == "style":
            return values
        return (values.new_tensor(LUMINANCE_WEIGHTS).view(3, 1, 1) * values).sum(0, keepdim=True)

    def normalize_image(self, image: Tensor) -> Tensor:
        """An image ``(depth, H, W)`` in 0..1 as the network takes it, ``(1, 3, H, W)``."""
        found = ((image - self.mean) / self.std)[None].to(next(self.model.parameters()).dtype)
        return found.contiguous(memory_format=torch.channels_last)


def load_image(source: Any, longer_side: int) -> Tensor:
    """The image in a file (or what else :func:`fukami.image.io.read_image` takes), ``(1, 3, H, W)`` uint8.

    Args:
        source: what to read.
        longer_side: pixels of the longer side that comes out; 0: as many as it has.

    Raises:
        fukami.Error: it cannot be read.
    """
    image = image_io.convert_mode(image_io.read_image(source), "RGB")
    if longer_side:
        factor = longer_side / max(image.size)
        width, height = (max(1, round(factor * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def compute_level_sizes(size: tuple[int, int], num_levels: int) -> list[tuple[int, int]]:
    """Height and width at each level, from coarse to fine, of an image of this width and height.

    Raises:
        fukami.Error: the image is too narrow for the network.
    """
    width, height = size
    if min(size) < MIN_SIDE:
        raise Error(f"an image of {width}×{height} pixels is too narrow: no side may have less than {MIN_SIDE}")
    num_levels = num_levels or max(1, max(size).bit_length() - COARSEST_SIDE.bit_length() + 1)
    sizes = [(round(height / 2**level), round(width / 2**level)) for level in range(num_levels)]
    return [each for each in reversed(sizes) if min(each) >= MIN_SIDE]


def resize_image(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image ``(C, H, W)`` at another height and width, without aliasing."""
    return F.interpolate(image[None], tuple(size), mode="bicubic", antialias=True, align_corners=False)[0]


def match_luminance(image: Tensor, reference: Tensor) -> Tensor:
    """Grey values with the mean and the deviation of those of another image.

    Gatys, Bethge, Hertzmann and Shechtman, "Preserving Color in Neural Artistic Style Transfer", 2016, section 4.2.
    """
    return reference.std() / image.std().clamp(min=1e-3) * (image - image.mean()) + reference.mean()


def make_cache_key(source: Any) -> Any:
    """What an image is known by."""
    return Path(source) if isinstance(source, str | Path) else id(source)
