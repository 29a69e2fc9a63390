"""R-CNN, stage 1: a classifier is fine-tuned on warped regions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fukami.region_cnn import RegionCNN

if TYPE_CHECKING:
    from fukami.task import Task
    from fukami.tasks.region_cnn import RegionCNN as Regional


@dataclass(frozen=True, kw_only=True)
class RCNNFinetune(RegionCNN):
    """R-CNN's first stage (Girshick et al. 2014): a classifier learns to name regions; its softmax detects."""

    published: ClassVar[str] = "not given; with the SVMs 54.2 % mAP VOC 2007"

    epochs: int = 30
    """Passes over the training set."""
    judge_every: int = 10
    """Passes between two evaluations; there is one at the end in any case."""
    batch: int = 8
    """Pictures in an update, over all processes."""
    optimizer: Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"] = "momentum"
    """How gradients become updates, as torch has it; momentum and nesterov are SGD."""
    lr: float = 1e-3
    """Peak learning rate of the recipe's own batch; the paper's is for a network that has seen ImageNet."""
    init: str = ""
    """Weights of a classifier to begin with: imagenet (torchvision's, downloaded), a file of a state dict, or a run's
    folder."""

    def task(self, labels: tuple[str, ...]) -> "Regional":
        """A detector of ``labels``."""
        from fukami.tasks.region_cnn import FineTuning

        return FineTuning(self.network(len(labels)), labels, self.prepare(), self.looking(), **self.regime())

    def begin(self, task: "Task") -> None:
        """Put the weights of ``init`` into the network."""
        from fukami import transfer

        if self.init:
            transfer.initialise(task.model.get_submodule("network"), self.backbone, self.init)
