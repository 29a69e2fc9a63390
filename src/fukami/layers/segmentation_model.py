"""Base class of the segmentation networks."""

from torch import Tensor, nn


class SegmentationModel(nn.Module):
    """Network from normalized images ``(N, 3, H, W)`` to scores ``(N, classes, H, W)``, on the layers of a classifier.

    Attributes:
        backbone_prefix: name of the submodule with the classifier's layers.
        class_prefixes: prefixes of the names of the parameters that depend on the classes.
    """

    backbone_prefix: str
    class_prefixes: tuple[str, ...]

    def convert_classifier_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the weights of a classifier to the names and shapes of this network."""
        raise NotImplementedError(f"{type(self).__name__} does not define convert_classifier_weights(tensors)")

    def list_backbone_layers(self) -> list[nn.Module]:
        """Return the layers of the classifier in order, if it may have no batch normalization."""
        raise NotImplementedError(f"{type(self).__name__} does not define list_backbone_layers()")
