"""R-CNN, stage 3: a box of each class by ridge regression."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fukami.recipe import within
from fukami.region_cnn import Later

if TYPE_CHECKING:
    from fukami.tasks.region_cnn import RegionCNN as Regional


@dataclass(frozen=True, kw_only=True)
class RCNNBoxes(Later):
    """R-CNN's third stage (Girshick et al. 2014): regressed boxes, on a run of rcnn-svm."""

    published: ClassVar[str] = "58.5 % mAP VOC 2007"
    follows: ClassVar[str] = "rcnn-svm"

    init: str = ""
    """The folder of a finished run of rcnn-svm."""
    box_ridge: float = 1000.0
    """Weight of the penalty, λ, for features of norm 20."""
    box_overlap: float = 0.6
    """IoU with an object from which on a region is learned from."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        within(self, 0, math.inf, "box_ridge")
        within(self, 0.01, 1, "box_overlap")

    def task(self, labels: tuple[str, ...]) -> "Regional":
        """A detector of ``labels``."""
        from fukami.tasks.machines import Regressors

        return Regressors(self.network(len(labels)), labels, self.prepare(), self.looking(),
                          ridge=self.box_ridge, overlap=self.box_overlap)  # fmt: skip
