"""R-CNN: a classifier on warped regions, with a linear SVM and a bounding box regressor per class.

Girshick, Donahue, Darrell and Malik, "Rich feature hierarchies for accurate object detection and semantic
segmentation", CVPR 2014 (sections and names of networks are those of the long version, arXiv 1311.2524v5).

    warped region → convolutions → pool5 ─┬→ fc6 → fc7 ─┬→ fc: classes and background (fine-tuning)
                                          │             └→ fc: a linear SVM per class
                                          └→ fc: a box regressor per class

The classifier keeps its parameter names, so that its weights load here. Its last layer is the fine-tuning layer, "a
randomly initialized (N + 1)-way classification layer" (Girshick et al. 2014, section 2.3). SVMs and box regressors are
fitted without gradients.
"""

from collections import OrderedDict

from torch import Tensor, nn

from fukami.layers.initialization import zero_bias
from fukami.models import vgg
from fukami.models.alexnet import build_alexnet_classifier, build_alexnet_features, compute_feature_size


def rcnn_alexnet(
    num_classes: int = 20,
    *,
    size: int = 227,
    hidden: int = 4096,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
    batch_norm: bool = False,
) -> "RCNN":
    """Build R-CNN on single-GPU AlexNet, the paper's T-Net.

    Args:
        num_classes: number of classes without the background.
        size: side of a warped region in pixels, at least 63.
        hidden: number of units of the two hidden fully connected layers.
        dropout: dropout probability.
        width_multiplier: number of channels of the convolutions, as a fraction of the original.
        batch_norm: batch normalization after every convolution.
    """
    side, channels = compute_feature_size(size), round(256 * width_multiplier)
    network = OrderedDict(
        features=build_alexnet_features(3, batch_norm, width_multiplier),
        avgpool=nn.AdaptiveAvgPool2d(side),
        flatten=nn.Flatten(),
        classifier=build_alexnet_classifier(channels * side * side, hidden, num_classes + 1, dropout),
    )
    return RCNN(RegionClassifier(network), num_classes)


def rcnn_vgg16(
    num_classes: int = 20,
    *,
    size: int = 224,
    hidden: int = 4096,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
    batch_norm: bool = False,
) -> "RCNN":
    """Build R-CNN on VGG-16, the paper's O-Net. The arguments are those of ``rcnn_alexnet``; ``size`` at least 32."""
    if size < 32:
        raise ValueError(f"VGG pools five times and needs regions of at least 32×32, not {size}×{size}: enlarge them")
    side, channels = min(7, size // 32), round(512 * width_multiplier)
    network = OrderedDict(
        features=vgg.build_vgg_features("D", 3, batch_norm, width_multiplier),
        avgpool=nn.AdaptiveAvgPool2d(side),
        flatten=nn.Flatten(),
        classifier=vgg.build_vgg_classifier(channels * side * side, hidden, num_classes + 1, dropout),
    )
    return RCNN(RegionClassifier(network), num_classes)


class RegionClassifier(nn.Sequential):
    """Classifier of warped regions, ``classes + 1`` scores with the background first."""

    features: nn.Sequential
    avgpool: nn.AdaptiveAvgPool2d
    flatten: nn.Flatten
    classifier: nn.Sequential


class RCNN(nn.Module):
    """Fine-tuned network, SVMs and bounding box regressors.

    Args:
        network: classifier of warped regions.
        num_classes: number of classes without the background.
    """

    def __init__(self, network: RegionClassifier, num_classes: int) -> None:
        super().__init__()
        self.network = network
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                zero_bias(layer)
        layers = [layer for layer in network.classifier if isinstance(layer, nn.Linear)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01 if layer is layers[-1] else (2 / layer.in_features) ** 0.5)
            nn.init.zeros_(layer.bias)
        self.svm = _build_frozen_linear(layers[-1].in_features, num_classes)
        self.bbox = _build_frozen_linear(layers[0].in_features, 4 * num_classes)

    def forward(self, regions: Tensor) -> Tensor:
        """Compute scores ``(K, classes + 1)`` of warped regions ``(K, 3, size, size)``, background first."""
        scores: Tensor = self.network(regions)
        return scores

    def pool5(self, regions: Tensor) -> Tensor:
        """Compute pool5 features of warped regions, ``(K, channels × positions)``."""
        features: Tensor = self.network.flatten(self.network.avgpool(self.network.features(regions)))
        return features

    def fc7(self, regions: Tensor) -> Tensor:
        """Compute fc7 features of warped regions, ``(K, hidden)``."""
        features: Tensor = self.network.classifier[:-1](self.pool5(regions))
        return features

    def compute_scores(self, fc7: Tensor) -> Tensor:
        """Compute the fine-tuned scores of fc7 features, ``(K, classes + 1)``."""
        scores: Tensor = self.network.classifier[-1](fc7)
        return scores


def _build_frozen_linear(inputs: int, outputs: int) -> nn.Linear:
    """Build a fully connected layer of zeros that requires no gradient."""
    layer = nn.Linear(inputs, outputs)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
        parameter.requires_grad = False
    return layer
