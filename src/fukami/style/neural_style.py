"""Neural style: one image, painted like others (Gatys, Ecker and Bethge 2016)."""

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from fukami.engine.recipe import Data, Recipe, check_range
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.engine.task import OptimizerFactory, Task
    from fukami.style.task import StyleInputs, StyleTransferTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NeuralStyle(Recipe):
    """An image that shows what one image shows, painted as others are."""

    paper: ClassVar[str] = "Gatys et al., Image Style Transfer Using Convolutional Neural Networks"
    year: ClassVar[int] = 2016
    family: ClassVar[str] = "style"
    paper_result: ClassVar[str] = "up to an hour on a K40, 512×512"
    reproduced_result: ClassVar[str] = "43.6 % of a plain loop's time on a CPU, both in float32"

    content: str = ""
    """The image that tells what is shown; by default an embedded photograph."""
    style: tuple[str, ...] = ()
    """The images that tell how it is painted; by default an embedded one."""
    style_weights: tuple[float, ...] = ()
    """How much there is of each style; by default as much of one as of another."""
    size: int = 512
    """Longer side of the image in pixels; 0: that of the content."""
    strength: float = 1.0
    """Of the style; less of it leaves more of the content."""
    init: Literal["content", "noise"] = "content"
    """What the image begins as."""
    colors: Literal["style", "content"] = "style"
    """Those of the style, or the content's own."""
    tv_weight: float = 0.0
    """Weight of the total variation, which makes the image smoother; 0: none."""
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    """How gradients become changes of the image."""
    lr: float = 1.0
    """Length of its steps; 1 is right for lbfgs, and with adam a fiftieth of the way from black to white."""
    levels: int = 0
    """Sizes that it is painted at, from coarse to fine, each twice the one before; 1: at once; 0: as many as it takes
    to begin with 128 to 256 pixels."""
    iterations: int = 80
    """Changes of the image at its full size; half as many at each coarser one."""
    eval_every: int = 40
    """Iterations between two evaluations, each with a preview."""
    weights: str = ""
    """Of VGG-19 or VGG-16: a file, or imagenet (torchvision's VGG-19, downloaded); by default those that are there."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        check_range(self, 0, math.inf, "size", "strength", "tv_weight")
        check_range(self, 1e-6, math.inf, "lr")
        check_range(self, 0, 12, "levels")
        check_range(self, 1, math.inf, "iterations", "eval_every")
        if self.style_weights and len(self.style_weights) != max(1, len(self.style)):
            raise UsageError(f"give as many style-weights as styles, {len(self.style)}, not {len(self.style_weights)}")
        if any(not 0 <= share < math.inf for share in self.style_weights) or sum(self.style_weights or (1,)) <= 0:
            raise UsageError(f"style-weights should be from 0 on, and not all 0, not {self.style_weights}")

    def load_data(self) -> Data:
        """The images; the labels are which VGG looks at them, and the width and the height of what is painted."""
        from fukami.engine import pretrained

        images = self.load_images()
        height, width = images.content.shape[2:]
        return Data([images], [images], (pretrained.load_vgg(self.weights)[0], str(width), str(height)))

    def load_images(self) -> "StyleInputs":
        """The content and the styles at their size."""
        from fukami.style import data as style_data
        from fukami.style.task import StyleInputs, load_image

        return StyleInputs(
            load_image(self.content or style_data.load_content_image(), self.size),
            tuple(load_image(each, self.size) for each in self.style or (style_data.load_style_image(),)),
        )

    def build_task(self, labels: tuple[str, ...]) -> "StyleTransferTask":
        """An image as large as the labels say."""
        from fukami import models
        from fukami.style.task import StyleOptions, StyleTransferTask

        name, width, height = labels
        manner = StyleOptions(
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
            network, (int(width), int(height)), manner, self.get_optimizer_factory(), self.eval_every
        )

    def get_optimizer_factory(self) -> "OptimizerFactory":
        """L-BFGS, or torch's Adam."""
        from functools import partial

        import torch

        from fukami.style.lbfgs import LBFGS

        if self.optimizer == "lbfgs":
            return partial(LBFGS, lr=self.lr)
        return partial(torch.optim.Adam, lr=0.02 * self.lr, fused=True)

    def initialize_task(self, task: "Task") -> None:
        """Put the weights into the network, and look at the images."""
        from fukami.engine import pretrained

        _, tensors = pretrained.load_vgg(self.weights)
        if not tensors:
            logger.warning(
                "no trained VGG was found: its filters are random, which gives colours and coarse texture alone; give "
                "--weights FILE, or --weights imagenet, which downloads torchvision's VGG-19 once"
            )
        own = task.model.state_dict()
        task.model.load_state_dict({key: tensors.get(key, value) for key, value in own.items()})
        cast("StyleTransferTask", task).initialize(self.load_images())
