"""Neural style transfer by optimization of an image (Gatys, Ecker and Bethge 2016)."""

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fukami.engine.recipe import MAX_IMAGE_SIDE, Data, Recipe, check_range
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.engine.task import OptimizerFactory
    from fukami.style.task import StyleInputs, StyleTransferTask

MAX_ITERATIONS = 100_000
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NeuralStyle(Recipe):
    """Neural style transfer: optimize the pixels of an image (Gatys et al. 2016).

    Result: the loss that a plain loop reaches in 500 iterations at 512 pixels in 151 seconds on 2 cores of an AMD EPYC,
    34.2 % of that loop's time, both in float32; 95 seconds in bfloat16. The paper: up to an hour on an NVIDIA K40.

    Example:
        fukami train neural-style --content photograph.jpg --style artwork.jpg --weights imagenet
    """

    content: str = ""
    """Content image; by default a bundled photograph."""
    style: tuple[str, ...] = ()
    """Style images; by default a bundled image."""
    style_weights: tuple[float, ...] = ()
    """Relative weight of each style image; by default all are equal."""
    size: int = 512
    """Longer side of the image, in pixels; 0 keeps the size of the content image."""
    strength: float = 1.0
    """Style strength, a factor of the style loss; lower values preserve more of the content."""
    init: Literal["content", "noise"] = "content"
    """Initial image: the content image or noise."""
    colors: Literal["style", "content"] = "style"
    """Colors of the style images, or of the content image, which transfers only luminance."""
    tv_weight: float = 0.0
    """Weight of the total-variation loss, which smooths the image; 0 disables it."""
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    """Optimizer of the pixels."""
    lr: float = 1.0
    """Learning rate; 1 suits both lbfgs and adam, where 1 corresponds to 0.02 of the value range."""
    levels: int = 0
    """Number of resolutions, from coarse to fine, each twice the previous one; 0 starts at a longer side of 128 to 256
    pixels, 1 uses only the full size."""
    iterations: int = 80
    """Number of optimizer steps at full resolution; half as many at each coarser one."""
    eval_every: int = 40
    """Evaluation and preview interval in iterations."""
    weights: str = ""
    """Weights of VGG-19 or VGG-16: a file, or imagenet (torchvision's VGG-19, downloaded); by default a local file, if
    one is found."""

    def __post_init__(self) -> None:
        """Validate the fields."""
        super().__post_init__()
        check_range(self, 0, MAX_IMAGE_SIDE, "size")
        check_range(self, 0, math.inf, "strength", "tv_weight")
        check_range(self, 1e-6, math.inf, "lr")
        check_range(self, 0, 12, "levels")
        check_range(self, 1, MAX_ITERATIONS, "iterations")
        check_range(self, 1, math.inf, "eval_every")
        if self.style_weights and len(self.style_weights) != max(1, len(self.style)):
            raise UsageError(f"specify one style-weight per style, {len(self.style)}, not {len(self.style_weights)}")
        if any(not 0 <= weight < math.inf for weight in self.style_weights) or sum(self.style_weights or (1,)) <= 0:
            raise UsageError(f"style-weights should be 0 or greater, and not all 0, not {self.style_weights}")

    def load_data(self) -> Data:
        """Load the images; the labels are the name of the VGG network and the output width and height."""
        from fukami.engine import pretrained

        images = self.load_images()
        height, width = images.content.shape[2:]
        return Data([images], [images], (pretrained.load_vgg(self.weights)[0], str(width), str(height)))

    def load_eval_data(self) -> Data:
        """Load the images, without the VGG network, which the run contains."""
        return Data((), [self.load_images()])

    def load_images(self) -> "StyleInputs":
        """Load the content and style images, resized."""
        from fukami.style import data as style_data
        from fukami.style.task import StyleInputs, load_image

        return StyleInputs(
            load_image(self.content or style_data.load_content_image(), self.size),
            tuple(load_image(source, self.size) for source in self.style or (style_data.load_style_image(),)),
        )

    def build_task(self, labels: tuple[str, ...]) -> "StyleTransferTask":
        """Build the task for an image of the size in the labels."""
        from fukami import models
        from fukami.style.task import StyleOptions, StyleTransferTask

        name, width, height = labels
        options = StyleOptions(
            longer_side=self.size,
            style_weights=self.style_weights or (1.0,) * max(1, len(self.style)),
            strength=self.strength,
            tv_weight=self.tv_weight,
            init=self.init,
            colors=self.colors,
            levels=self.levels,
            iterations=self.iterations,
        )
        network = getattr(models, f"neural_style_{name}")()
        return StyleTransferTask(
            network, (int(width), int(height)), options, self.get_optimizer_factory(), self.eval_every
        )

    def get_optimizer_factory(self) -> "OptimizerFactory":
        """Return the factory of L-BFGS or torch's Adam."""
        from functools import partial

        import torch

        from fukami.style.lbfgs import LBFGS

        if self.optimizer == "lbfgs":
            return partial(LBFGS, lr=self.lr)
        return partial(torch.optim.Adam, lr=0.02 * self.lr, fused=True)

    def initialize_task(self, task: "StyleTransferTask") -> None:
        """Load the network's weights and compute the style targets."""
        from fukami.engine import pretrained

        _, tensors = pretrained.load_vgg(self.weights)
        if not tensors:
            logger.warning(
                "no VGG weights found: random filters are used, which transfer only colors and coarse texture; "
                "use --weights FILE, or --weights imagenet, which downloads torchvision's VGG-19 once"
            )
        state = task.model.state_dict()
        task.model.load_state_dict({key: tensors.get(key, value) for key, value in state.items()})
        task.initialize(self.load_images())
