"""DCGAN: a generator that draws images nobody took (Radford et al. 2016)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fukami.engine.recipe import Data, DataSpec, check_range
from fukami.engine.supervised import OptimizerName, SupervisedRecipe
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.data.labelled_images import LabelledImages
    from fukami.data.loader import InMemoryLoader
    from fukami.engine.task import OptimizerFactory
    from fukami.generation.task import GANTask
    from fukami.image.transform import SquareTransform

ADAM_BETAS = (0.5, 0.999)  # of Adam (section 4)
EVAL_BATCH_SIZE = 500  # real images that are looked at together


@dataclass(frozen=True, kw_only=True)
class DCGAN(SupervisedRecipe):
    """Images like those that it was shown, from noise: a generator and a discriminator that learn by competing."""

    paper: ClassVar[str] = "Radford et al., Unsupervised Representation Learning with DCGAN"
    year: ClassVar[int] = 2016
    family: ClassVar[str] = "generation"
    paper_result: ClassVar[str] = "82.8 % CIFAR-10, its features with an SVM"
    reproduced_result: ClassVar[str] = "72.70 % CIFAR-10, features learned there, one seed"

    data: DataSpec = "digits"
    """What to learn from: digits (embedded), scenes (embedded), mnist, cifar10, cifar100, imagenet, or a folder or an
    archive of images, or a CSV file or shards of them; labels are not looked at."""
    holdout: float = 0.0
    """Share of the images kept to be compared with; 0: what is made is compared with what was learned from, as
    usual."""
    size: Literal[0, 28, 32, 64, 128] = 0
    """Side of the images in pixels; 0: 28 or 32 where all have so many, else 64."""
    channels: Literal[0, 1, 3] = 0
    """1 grey, 3 colour; 0: as the first image is."""
    base_channels: int = 64
    """Maps of the widest layer of an image; the paper has 128."""
    kernel_size: Literal[4, 5] = 4
    """Side of the filters; the paper has 5."""
    stable: bool = False
    """Spectral normalisation and the hinge loss, in place of batch normalisation and cross entropy."""
    ema_decay: float = 0.999
    """Decay of a moving average of the generator, which then draws; 0: none."""
    eval_samples: int = 1000
    """Images that are made at each evaluation, and as many real ones, where there are."""
    eval_features: str = "auto"
    """In whose features they are compared: digits (the shipped DeepConvNet), inception or vgg where their weights are,
    or a file of these, or pixels; auto: the first of these that fits."""
    epochs: int = 25
    """Passes over the images."""
    eval_every: int = 5
    """Passes between two evaluations; there is one at the end in any case."""
    batch_size: int = 32
    """Images in an update, over all processes."""
    optimizer: OptimizerName = "adam"
    """How gradients become updates, as torch has it; momentum and nesterov are SGD."""
    lr: float = 2e-4
    """Learning rate of both networks."""
    weight_decay: float = 0.0
    """Pull of the weights towards 0; decoupled with adamw (Loshchilov and Hutter 2019)."""
    schedule: str = "constant"
    """Course of the learning rate: constant, step=DROPS, multistep=SHARE,SHARE, exponential=END, polynomial=POWER,
    cosine, one-cycle, plateau=PATIENCE."""
    warmup: float = 0.0
    """Share of the training in which the learning rate rises."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 1, math.inf, "base_channels")
        check_range(self, 2, math.inf, "eval_samples")
        check_range(self, 0, 0.9999999, "ema_decay")
        if self.accumulate > 1 or self.activation_checkpointing:
            raise UsageError("dcgan can neither accumulate nor rematerialise; give a smaller --batch-size")
        mixed = {"mixup", "cutmix"} & {word.partition("=")[0] for word in self.augment}
        if mixed:
            raise UsageError(f"{' and '.join(sorted(mixed))} would be learned as images; leave it out")

    def build_transform(self, size: int, channels: int) -> "SquareTransform":
        """How an image is brought to the form that the discriminator sees."""
        from fukami.image.transform import SquareTransform

        return SquareTransform(channels=channels, size=size, mean=(0.5,), std=(0.5,))

    def load_data(self) -> Data:
        """The images; the labels are their size and channels."""
        from fukami.generation import data as generation_data

        learned, judged = generation_data.load_dataset(self.data, self.holdout)
        size, channels = generation_data.infer_image_shape(learned)
        size, channels = self.size or size, self.channels or channels
        prepare = self.build_transform(size, channels)
        train = self.build_image_loader(learned, (), prepare, self.augment, batch_size=self.batch_size, seed=self.seed)
        return Data(train, self.build_eval_loader(judged, prepare), (str(size), str(channels)))

    def build_eval_loader(self, source: "LabelledImages", transform: "SquareTransform") -> "InMemoryLoader":
        """Real images to be compared with."""
        from fukami.data.loader import InMemoryLoader
        from fukami.generation import data as generation_data

        found = generation_data.select_subset(source, self.eval_samples).decode(transform, self.max_broken)
        return InMemoryLoader(found.images, found.targets, (), batch_size=EVAL_BATCH_SIZE, names=found.names)

    def build_task(self, labels: tuple[str, ...]) -> "GANTask":
        """Two networks for images of this size."""
        from fukami import models
        from fukami.generation import features as generation_features
        from fukami.generation.task import GANTask

        size, channels = map(int, labels)
        form = {"channels": channels, "base_channels": self.base_channels, "kernel_size": self.kernel_size}
        return GANTask(
            models.dcgan_generator(size, **form),
            models.dcgan_discriminator(size, **form, use_spectral_norm=self.stable),
            self.build_transform(size, channels),
            partial(generation_features.load_feature_extractor, self.eval_features, size, channels),
            hinge_loss=self.stable,
            ema_decay=self.ema_decay,
            **self.get_training_options(),
        )

    def get_optimizer_factory(self) -> "OptimizerFactory":
        """torch's optimizer of that name; Adam with the paper's β1."""
        made: Any = super().get_optimizer_factory()
        return partial(made, betas=ADAM_BETAS) if self.optimizer in ("adam", "adamw") else made
