"""R-CNN, the whole: its three stages, one after another."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fukami import region_cnn
from fukami.errors import UsageError
from fukami.recipe import Recipe
from fukami.recipes import rcnn_boxes, rcnn_finetune, rcnn_svm
from fukami.region_cnn import RegionCNN

if TYPE_CHECKING:
    from fukami.data.boxes import Annotated
    from fukami.data.framed import Framed
    from fukami.task import Task
    from fukami.tasks.region_cnn import RegionCNN as Regional


@dataclass(frozen=True, kw_only=True)
class RCNN(rcnn_finetune.RCNNFinetune):
    """R-CNN (Girshick et al. 2014): proposed regions, a fine-tuned network, linear SVMs and regressed boxes."""

    published: ClassVar[str] = "58.5 % mAP VOC 2007"
    reached: ClassVar[str] = "73.15 % mAP BCCD, 320 pixels, one seed"

    svm_cost: float = 1e-3
    """C of the SVMs, for features of norm 20; positives count twice."""
    svm_overlap: float = 0.3
    """IoU with the objects of a class below which a region is its negative."""
    box_ridge: float = 1000.0
    """Weight of the penalty of the regressed boxes, λ, for features of norm 20."""
    box_overlap: float = 0.6
    """IoU with an object from which on its box is learned from a region."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        self.stages(Path())
        self._stage(rcnn_boxes.RCNNBoxes, "")

    def stages(self, folder: Path) -> dict[str, Recipe]:
        """Fine-tuning and the SVMs.

        Raises:
            UsageError: there are several processes, and the later stages are solved by one.
        """
        if (world := int(os.environ.get("WORLD_SIZE", 1))) > 1:
            raise UsageError(
                f"the SVMs and boxes of R-CNN are solved by one process, not {world}; start one, or train the stages "
                "by themselves: rcnn-finetune with several processes, then rcnn-svm and rcnn-boxes"
            )
        svm = self._stage(rcnn_svm.RCNNSVM, str(folder.resolve() / "finetune"))
        return {"finetune": self._stage(rcnn_finetune.RCNNFinetune, self.init), "svm": svm}

    def _stage(self, kind: type[RegionCNN], init: str) -> RegionCNN:
        """A stage of this recipe, with the fields that it has."""
        names = {field.name for field in dataclasses.fields(kind)} & {field.name for field in dataclasses.fields(self)}
        idle = region_cnn.IDLE if issubclass(kind, region_cnn.Later) else ()
        return kind(**{name: getattr(self, name) for name in names.difference(idle)} | {"init": init})

    def loader(self, samples: "tuple[Annotated, ...]", labels: tuple[str, ...], *, train: bool) -> "Framed":
        """Batches for the last stage, the boxes."""
        return self._stage(rcnn_boxes.RCNNBoxes, "").loader(samples, labels, train=train)

    def task(self, labels: tuple[str, ...]) -> "Regional":
        """A detector of ``labels`` by SVMs, whose boxes the last stage finds."""
        return self._stage(rcnn_boxes.RCNNBoxes, "").task(labels)

    def follow(self, task: "Task", run: Path) -> None:
        """Take the network and the SVMs of the stage before."""
        region_cnn.take(task, run)
