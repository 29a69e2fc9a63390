"""DeepConvNet with dropout also on its ten scores, as in the note, to measure the effect on accuracy.

fukami train benchmarks/common/dropped_scores.py --data mnist
"""

from dataclasses import dataclass

from torch import nn

from fukami.classification.deep_convnet import DeepConvNet


@dataclass(frozen=True, kw_only=True)
class DroppedScores(DeepConvNet):
    """DeepConvNet with dropout also after the last fully connected layer (the note's `affine - dropout - softmax`)."""

    def build_task(self, labels):
        """Build the task of DeepConvNet and append the dropout layer."""
        task = super().build_task(labels)
        task.model.append(nn.Dropout(self.dropout))
        return task
