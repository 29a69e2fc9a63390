"""Neural style transfer: optimization of an image for content and style losses."""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.engine.prediction import Prediction
from fukami.engine.supervised import IMAGENET_MEAN, IMAGENET_STD
from fukami.engine.task import Metrics, OptimizerFactory, Task
from fukami.errors import Error
from fukami.image import io as image_io
from fukami.image.channels import LUMA
from fukami.layers.activation_scaling import rescale_activations
from fukami.models.neural_style import StyleFeatures
from fukami.quantization import half_precision
from fukami.style import losses as style_losses

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime
    from fukami.engine.task import FigureContent

MIN_SIDE = 32  # minimum side in pixels, since four pooling layers precede the last feature map
COARSEST_SIDE = 128  # minimum longer side in pixels of the coarsest level
CALIBRATION_SIZE = 256  # side in pixels of the square images that calibrate the activations
STYLE_WEIGHT = 300.0  # weight of the style loss per activation of the content layer, at strength 1
RANGE_PENALTY_WEIGHT = 100.0  # weight of the squared distance of values from 0..1
TV_WEIGHT = 1.0  # weight of the total variation, at tv_weight 1


class StyleInputs(NamedTuple):
    """Content image and style images, ``(1, 3, H, W)`` uint8 each."""

    content: Tensor
    styles: tuple[Tensor, ...]


class ImagePyramid(nn.Module):
    """Image pyramid, from coarse to fine, with the style targets of each level.

    Args:
        sizes: height and width of each level.
        num_channels: 1 for grayscale, 3 for color; values are 0..1, and may exceed this range during optimization.
        style_channels: numbers of channels of the style layers.
    """

    level: Tensor

    def __init__(self, sizes: Sequence[tuple[int, int]], num_channels: int, style_channels: Sequence[int]) -> None:
        super().__init__()
        self.images = nn.ParameterList([nn.Parameter(torch.zeros(num_channels, *size)) for size in sizes])
        self.register_buffer("level", torch.tensor(0.0))
        for level in range(len(sizes)):
            for layer, count in enumerate(style_channels, 1):
                self.register_buffer(f"style{level}_{layer}", torch.zeros(count, count))
        self.num_layers = len(style_channels)

    def get_style_targets(self, level: int) -> list[Tensor]:
        """Return the style's Gram matrices ``(C, C)`` of a level, one per layer."""
        return [self.get_buffer(f"style{level}_{layer}") for layer in range(1, self.num_layers + 1)]

    def get_image(self, level: int) -> Tensor:
        """Return the current image ``(num_channels, H, W)``, resized to a level."""
        image = self.images[int(self.level)]
        size = self.images[level].shape[1:]
        return image if image.shape[1:] == size else resize_image(image, size)


@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """Options of the style transfer.

    Attributes:
        longer_side: longer side in pixels of the inputs of :meth:`StyleTransferTask.predict`; 0 keeps their size.
        style_weights: relative weight of each style image.
        strength: factor of the style loss; 1 suits most images.
        tv_weight: weight of the total variation, which smooths the image; 0 disables it.
        init: initial image, the content image or noise.
        colors: colors of the style images or of the content image.
        levels: number of resolutions, from coarse to fine, each twice the previous one; too small ones are omitted. 0
            starts at a longer side of 128 to 256 pixels.
        iterations: steps at the finest level; half as many at each other.
    """

    longer_side: int
    style_weights: tuple[float, ...]
    strength: float
    tv_weight: float
    init: Literal["content", "noise"]
    colors: Literal["style", "content"]
    levels: int
    iterations: int


class StylizedPrediction(Prediction):
    """Size and losses of a stylized image, with the image itself as the attribute ``image``."""

    image: Image.Image


class StyleTransferTask(Task):
    """Style transfer to one image, whose pixels are the parameters (Gatys et al. 2016).

    Args:
        model: returns the style and content feature maps of normalized images ``(1, 3, H, W)``. ``style_channels`` are
            the numbers of channels of the style maps, ``features`` its layers.
        size: width and height of the image.
        options: options of the style transfer.
        optimizer: factory of the optimizer of the image.
        eval_every: evaluation interval in iterations.
    """

    metric_mode = None
    model: StyleFeatures

    def __init__(
        self,
        model: StyleFeatures,
        size: tuple[int, int],
        options: StyleOptions,
        optimizer: OptimizerFactory,
        eval_every: int,
    ) -> None:
        self.size, self.options = size, options
        self.level_sizes = compute_level_sizes(size, options.levels)
        coarse_steps = -(-options.iterations // 2)
        self.level_starts = [coarse_steps * level for level in range(len(self.level_sizes))]  # first step of each level
        num_steps = self.level_starts[-1] + options.iterations
        # the data are one batch, so that an epoch is a step
        super().__init__(model, optimizer=optimizer, epochs=num_steps, eval_every=eval_every)
        self.pyramid = ImagePyramid(self.level_sizes, 1 if options.colors == "content" else 3, model.style_channels)
        self.next_level = 0  # level of the next step
        self.content_targets: dict[int, Tensor] = {}

    def setup(self, runtime: "Runtime") -> None:
        """Move the network and the image to the device."""
        super().setup(runtime)
        self.model.requires_grad_(False)
        self.pyramid = self.pyramid.to(runtime.device)
        self.mean, self.std = (
            torch.tensor(value, device=runtime.device).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD)
        )

    def prepare_training(self) -> None:
        """Create an optimizer for each level."""
        runtime = self.runtime
        self.ddp_model = self.training_model = self.model
        self.optimizers = [runtime.prepare_optimizer(self.make_optimizer([image])) for image in self.pyramid.images]
        self.optimizer, self.scaler = self.optimizers[0], runtime.build_grad_scaler()
        optimizers = {f"optimizer {level}": optimizer for level, optimizer in enumerate(self.optimizers)}
        self.state = {"model": self.model, "pyramid": self.pyramid, "scaler": self.scaler, **optimizers}

    def compile(self) -> None:
        """Do nothing: recompilation for each level would take longer than its steps."""

    def get_modules(self) -> dict[str, nn.Module]:
        """Return the network and the image pyramid, by name."""
        return {"model": self.model, "pyramid": self.pyramid}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Replace the network and the image pyramid for inference."""
        super().replace_modules(modules)
        pyramid = modules["pyramid"]
        assert isinstance(pyramid, ImagePyramid)
        self.pyramid = pyramid

    @torch.no_grad()
    def initialize(self, inputs: StyleInputs) -> None:
        """Rescale the network's activations, compute the style targets and initialize the image."""
        content = self.preprocess_image(inputs.content)
        styles = [self.preprocess_image(image) for image in inputs.styles]
        if self.options.colors == "content":
            styles = [match_luminance(style, content) for style in styles]
        squares = [
            self.normalize_image(resize_image(image, (CALIBRATION_SIZE, CALIBRATION_SIZE)))
            for image in (content, *styles)
        ]
        rescale_activations(list(self.model.features), torch.cat(squares))
        for level in range(len(self.level_sizes)):
            factor = max(self.level_sizes[level]) / max(self.level_sizes[-1])
            sides = [[max(MIN_SIDE, round(side * factor)) for side in style.shape[1:]] for style in styles]
            resized = [
                self.normalize_image(resize_image(style, size)) for style, size in zip(styles, sides, strict=True)
            ]
            grams = [list(map(style_losses.compute_gram_matrix, self.model(image)[0])) for image in resized]
            for layer, target in enumerate(self.pyramid.get_style_targets(level)):
                weighted = torch.stack(
                    [weight * gram[layer] for weight, gram in zip(self.options.style_weights, grams, strict=True)]
                )
                target.copy_(weighted.sum(0) / sum(self.options.style_weights))
        self.initialize_image(content)

    @torch.no_grad()
    def initialize_image(self, content: Tensor, generator: torch.Generator | None = None) -> None:
        """Initialize the image at the coarsest level; ``generator`` is that of the noise, None for torch's own."""
        first = self.pyramid.images[0]
        first.copy_(
            resize_image(content, self.level_sizes[0])
            if self.options.init == "content"
            else torch.rand(first.shape, generator=generator).to(first)
        )

    def schedule(self, progress: float) -> float:
        """Select the level of the next step and its optimizer; the learning rate is constant."""
        self.next_level = bisect.bisect(self.level_starts, round(progress * self.epochs)) - 1
        self.optimizer = self.optimizers[self.next_level]
        return super().schedule(progress)

    def step(self, batch: StyleInputs) -> dict[str, Tensor]:
        """Do a step, after advancing to the next level when due."""
        if self.next_level > int(self.pyramid.level):
            self.advance_level(batch.content)
        return super().step(batch)

    @torch.no_grad()
    def advance_level(self, content: Tensor) -> None:
        """Upsample the image to the next level, and add the content's details that were too fine for the last one."""
        last_size, size = self.level_sizes[int(self.pyramid.level)], self.level_sizes[self.next_level]
        image = self.pyramid.get_image(self.next_level)
        if self.options.init == "content":
            original = self.preprocess_image(content)
            image = image + resize_image(original, size) - resize_image(resize_image(original, last_size), size)
        self.pyramid.images[self.next_level].copy_(image)
        self.pyramid.level.fill_(self.next_level)

    def compute_loss(self, batch: StyleInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the total loss at the current level, and its terms (Gatys et al. 2016, equation 7)."""
        level = int(self.pyramid.level)
        return self.compute_losses(self.pyramid.images[level], batch.content, level)

    def compute_losses(self, image: Tensor, content: Tensor, level: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the total loss of an image ``(num_channels, H, W)`` of a level's size, and its terms."""
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
            style_maps, content_maps = self.model(self.normalize_image(image))
        terms = {
            "content_loss": style_losses.compute_content_loss(content_maps, target),
            "style_loss": style_losses.compute_style_loss(
                [style_losses.compute_gram_matrix(maps) for maps in style_maps], self.pyramid.get_style_targets(level)
            ),
        }
        loss = terms["content_loss"] + self.options.strength * STYLE_WEIGHT * target.numel() * terms["style_loss"]
        loss = loss + RANGE_PENALTY_WEIGHT * (image - image.clamp(0, 1)).square().sum()
        if self.options.tv_weight:
            terms["variation"] = style_losses.compute_total_variation(image)
            loss = loss + self.options.tv_weight * TV_WEIGHT * terms["variation"]
        return loss, {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[StyleInputs]) -> dict[str, float]:
        """Compute the losses of the image at full size, with values clamped to 0..1."""
        (batch,) = batches
        self.content_image = batch.content
        last = len(self.level_sizes) - 1
        loss, terms = self.compute_losses(self.pyramid.get_image(last).clamp(0, 1), batch.content, last)
        return {"loss": float(loss), **{name: float(term) for name, term in terms.items()}, "count": 1}

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Resize an image to the style transfer's size, ``(3, H, W)`` uint8.

        Raises:
            fukami.Error: the image is too narrow.
        """
        content = resize_longer_side(image, self.options.longer_side)
        compute_level_sizes((content.shape[2], content.shape[1]), self.options.levels)
        return content

    def predict_batch(self, images: Tensor) -> list[Prediction]:
        """Stylize other images; return ``width``, ``height``, ``loss`` and its terms for each."""
        predictions: list[Prediction] = []
        with torch.inference_mode(False):  # the pixels are optimized
            for image in images.clone():
                task, metrics = self.stylize_image(image[None])
                width, height = task.size
                stylized = StylizedPrediction(width=width, height=height, **metrics)
                stylized.image = task.render_image()
                predictions.append(stylized)
        return predictions

    def stylize_image(self, content: Tensor) -> "tuple[StyleTransferTask, Metrics]":
        """Stylize another image ``(1, 3, H, W)``; return its task and losses."""
        size = (content.shape[3], content.shape[2])
        task = StyleTransferTask(self.model, size, self.options, self.make_optimizer, self.eval_every)
        task.setup(replace(self.runtime, precision="float32"))  # the weights keep their dtype
        task.prepare_training()
        for level in range(len(task.level_sizes)):
            source_level = max(0, len(self.level_sizes) - len(task.level_sizes) + level)
            for target, source in zip(
                task.pyramid.get_style_targets(level), self.pyramid.get_style_targets(source_level), strict=True
            ):
                target.copy_(source)
        with torch.no_grad():
            task.initialize_image(task.preprocess_image(content), torch.Generator().manual_seed(0))
        batch = StyleInputs(content, ())
        for step in range(task.epochs):
            task.schedule(step / task.epochs)
            task.step(batch)
        return task, task.evaluate([batch])

    def draw(self, image: Image.Image, prediction: Prediction) -> Image.Image:
        """Return the stylized image."""
        if not isinstance(prediction, StylizedPrediction):  # such as one that was read from JSON
            (prediction,) = self.predict([image])
        assert isinstance(prediction, StylizedPrediction)
        return prediction.image

    def on_evaluation(self, metrics: Metrics) -> Image.Image:
        """Return the current image."""
        return self.render_image()

    def render_image(self) -> Image.Image:
        """Render the current image at full size."""
        pixels = (
            (255 * self.pyramid.get_image(len(self.level_sizes) - 1).detach().float().clamp(0, 1)).round().byte().cpu()
        )
        if self.options.colors == "style":
            return Image.fromarray(pixels.permute(1, 2, 0).numpy())
        _, blue, red = Image.fromarray(self.content_image[0].permute(1, 2, 0).cpu().numpy()).convert("YCbCr").split()
        return Image.merge("YCbCr", (Image.fromarray(pixels[0].numpy()), blue, red)).convert("RGB")

    def plot_evaluation(self, batches: Iterable[StyleInputs]) -> "Iterator[tuple[str, FigureContent]]":
        """Yield the content, style and output images."""
        (batch,) = batches
        self.content_image = batch.content
        inputs = [Image.fromarray(image[0].permute(1, 2, 0).cpu().numpy()) for image in (batch.content, *batch.styles)]
        names = ["content", *("style" for _ in batch.styles), "output"]
        yield "Content, style and output", list(zip(names, [*inputs, self.render_image()], strict=True))

    def preprocess_image(self, image: Tensor) -> Tensor:
        """Convert an image ``(1, 3, H, W)`` uint8 to the pyramid's format: ``(num_channels, H, W)`` in 0..1."""
        values = image[0].to(self.runtime.device).float() / 255
        if self.options.colors == "style":
            return values
        return (values.new_tensor(LUMA).view(3, 1, 1) * values).sum(0, keepdim=True)

    def normalize_image(self, image: Tensor) -> Tensor:
        """Normalize an image ``(num_channels, H, W)`` in 0..1 to the network's input ``(1, 3, H, W)``."""
        normalized = ((image - self.mean) / self.std)[None].to(next(self.model.parameters()).dtype)
        return normalized.contiguous(memory_format=torch.channels_last)


def load_image(source: image_io.ImageSource, longer_side: int) -> Tensor:
    """Load an image as ``(1, 3, H, W)`` uint8.

    Args:
        source: a path, a PIL image or an array as :func:`fukami.image.io.read_image` accepts it.
        longer_side: longer side in pixels after resizing; 0 keeps the size.

    Raises:
        fukami.Error: the image cannot be read.
    """
    return resize_longer_side(image_io.read_image(source), longer_side)[None]


def resize_longer_side(image: Image.Image, longer_side: int) -> Tensor:
    """Resize an image to a longer side in pixels, or keep its size with 0; return it as ``(3, H, W)`` uint8."""
    image = image_io.convert_mode(image, "RGB")
    if longer_side:
        factor = longer_side / max(image.size)
        width, height = (max(1, round(factor * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def compute_level_sizes(size: tuple[int, int], num_levels: int) -> list[tuple[int, int]]:
    """Compute the height and width of each level, from coarse to fine, for an image of this width and height.

    Raises:
        fukami.Error: the image is too narrow for the network.
    """
    width, height = size
    if min(size) < MIN_SIDE:
        raise Error(f"an image of {width}×{height} pixels is too narrow: each side should be at least {MIN_SIDE}")
    num_levels = num_levels or max(1, max(size).bit_length() - COARSEST_SIDE.bit_length() + 1)
    sizes = [(round(height / 2**level), round(width / 2**level)) for level in range(num_levels)]
    return [level_size for level_size in reversed(sizes) if min(level_size) >= MIN_SIDE]


def resize_image(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize an image ``(C, H, W)`` to a height and width, with antialiasing."""
    return F.interpolate(image[None], tuple(size), mode="bicubic", antialias=True, align_corners=False)[0]


def match_luminance(image: Tensor, reference: Tensor) -> Tensor:
    """Match the mean and standard deviation of the luminance to those of a reference image.

    Gatys, Bethge, Hertzmann and Shechtman, "Preserving Color in Neural Artistic Style Transfer", 2016, section 4.2.
    """
    return reference.std() / image.std().clamp(min=1e-3) * (image - image.mean()) + reference.mean()
