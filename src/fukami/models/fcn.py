"""FCN: semantic segmentation by a classifier whose fully connected layers are convolutions.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015. On VGG-16 (figure 3):

    image → conv1, conv2, conv3 → pool3 → conv4 → pool4 → conv5 → pool5 → 7×7, 4096 → 1×1, 4096 → 1×1, classes
                                      │                │                                        ┌──────┘
                                      │                │                                        ├→ ×32:  FCN-32s
                                      │                └────────→ 1×1, classes ─────────→ + ← ×2
                                      │                                                   ├→ ×16:        FCN-16s
                                      └─────────→ 1×1, classes ────────→ + ← ×2 ──────────┘
                                                                         └→ ×8:                          FCN-8s

Upsampling is a transposed convolution initialized as bilinear interpolation. The score layers of pool4 and pool3 are
initialized with zeros, so that a finer network starts with the predictions of the coarser one (Long et al. 2015,
section 4.2). The convolutions have torchvision's names. The networks on ResNet are torchvision's: dilated convolutions
replace the strides of layer3 and layer4 (Chen et al. 2017), and scores at stride 8 are interpolated.
"""

from collections import OrderedDict

from torch import Tensor, nn

from fukami.layers.initialization import zero_bias
from fukami.layers.segmentation_model import SegmentationModel
from fukami.layers.upsample import BilinearConvTranspose2d, Scores, apply_with_padding, interpolate_bilinear
from fukami.models.resnet import resnet50, resnet101
from fukami.models.vgg import build_vgg_features, renumber_conv_weights

SIZE_DIVISOR = 32  # stride of the deepest maps in pixels


def fcn32s_vgg16(
    num_classes: int = 21,
    *,
    hidden: int = 4096,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
    batch_norm: bool = False,
    channels: int = 3,
) -> "FCNVGG":
    """Build FCN-32s: ``(N, channels, H, W)`` to scores ``(N, classes, H, W)``. H and W: any.

    Args:
        num_classes: number of classes; Pascal VOC has 21 with the background.
        hidden: channels of the two convolutions that replace fully connected layers.
        dropout: dropout probability of these channels.
        width_multiplier: number of channels of the other convolutions, as a fraction of the paper's.
        batch_norm: batch normalization after every convolution except the last; the paper has none.
        channels: number of input channels.
    """
    return FCNVGG(num_classes, 32, hidden, dropout, width_multiplier, batch_norm, channels)


def fcn16s_vgg16(
    num_classes: int = 21,
    *,
    hidden: int = 4096,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
    batch_norm: bool = False,
    channels: int = 3,
) -> "FCNVGG":
    """Build FCN-16s, which adds the scores of pool4. The arguments are those of ``fcn32s_vgg16``."""
    return FCNVGG(num_classes, 16, hidden, dropout, width_multiplier, batch_norm, channels)


def fcn8s_vgg16(
    num_classes: int = 21,
    *,
    hidden: int = 4096,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
    batch_norm: bool = False,
    channels: int = 3,
) -> "FCNVGG":
    """Build FCN-8s, which adds the scores of pool4 and pool3. The arguments are those of ``fcn32s_vgg16``."""
    return FCNVGG(num_classes, 8, hidden, dropout, width_multiplier, batch_norm, channels)


def fcn_resnet50(num_classes: int = 21, *, aux_loss: bool = True, channels: int = 3) -> "FCNResNet":
    """Build FCN on a dilated ResNet-50: ``(N, channels, H, W)`` to scores ``(N, classes, H, W)``. H and W: any.

    In training mode with ``aux_loss`` the output is ``(scores, auxiliary scores)``; the latter come from layer3.

    Args:
        num_classes: number of classes; Pascal VOC has 21 with the background.
        aux_loss: add the auxiliary classifier.
        channels: number of input channels.
    """
    return FCNResNet(resnet50(channels=channels), num_classes, aux_loss)


def fcn_resnet101(num_classes: int = 21, *, aux_loss: bool = True, channels: int = 3) -> "FCNResNet":
    """Build FCN on a dilated ResNet-101. The arguments are those of ``fcn_resnet50``."""
    return FCNResNet(resnet101(channels=channels), num_classes, aux_loss)


class FCNVGG(SegmentationModel):
    """FCN on VGG-16, whose scores are upsampled by ``stride`` to the image (Long et al. 2015, section 4)."""

    backbone_prefix = "features"  # layers of the classifier
    # class-specific layers
    class_prefixes = ("head.score.", "score4.", "score3.", "upsample4.", "upsample3.", "upsample.")

    def __init__(
        self,
        num_classes: int,
        stride: int,
        hidden: int,
        dropout: float,
        width_multiplier: float,
        batch_norm: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.features = build_vgg_features("D", channels, batch_norm, width_multiplier)
        c3, c4, c5 = (round(width_multiplier * width) for width in (256, 512, 512))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for layer_number, inputs, side in ((6, c5, 7), (7, hidden, 1)):  # N × hidden × H/32 × W/32
            layers[f"fc{layer_number}"] = nn.Conv2d(inputs, hidden, side, padding=side // 2)
            if batch_norm:
                layers[f"norm{layer_number}"] = nn.BatchNorm2d(hidden)
            layers |= {f"relu{layer_number}": nn.ReLU(inplace=True), f"drop{layer_number}": nn.Dropout(dropout)}
        layers["score"] = nn.Conv2d(hidden, num_classes, 1)  # N × classes × H/32 × W/32
        self.head = nn.Sequential(layers)
        for layer in list(self.head)[:-1]:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                zero_bias(layer)
        self.score4 = _build_zero_conv(c4, num_classes) if stride < 32 else None
        self.upsample4 = BilinearConvTranspose2d(num_classes, 2) if stride < 32 else None
        self.score3 = _build_zero_conv(c3, num_classes) if stride < 16 else None
        self.upsample3 = BilinearConvTranspose2d(num_classes, 2) if stride < 16 else None
        self.upsample = BilinearConvTranspose2d(num_classes, stride)
        pool3, pool4 = [index for index, layer in enumerate(self.features, 1) if isinstance(layer, nn.MaxPool2d)][2:4]
        # a list, so that the layers are not registered twice
        self.stages = [self.features[:pool3], self.features[pool3:pool4], self.features[pool4:], self.head]

    def forward(self, images: Tensor) -> Scores:
        """Compute scores ``(N, classes, H, W)`` of normalized images ``(N, C, H, W)``."""
        return apply_with_padding(self.compute_scores, images, SIZE_DIVISOR)

    def compute_scores(self, images: Tensor) -> Tensor:
        """Compute scores of images whose sides are multiples of 32."""
        stage3, stage4, stage5, head = self.stages
        pool3 = stage3(images)  # N × 256 × H/8 × W/8
        pool4 = stage4(pool3)  # N × 512 × H/16 × W/16
        scores = head(stage5(pool4))  # N × classes × H/32 × W/32
        if self.score4 is not None and self.upsample4 is not None:
            scores = self.upsample4(scores) + self.score4(pool4)
        if self.score3 is not None and self.upsample3 is not None:
            scores = self.upsample3(scores) + self.score3(pool3)
        full_size: Tensor = self.upsample(scores)
        return full_size

    def get_traceable_module(self) -> nn.Module:
        """Return the layers without the padding and resizing to the input size."""
        return TraceableFCN(self)

    def list_backbone_layers(self) -> list[nn.Module]:
        """Return the layers of the classifier in order."""
        return [*self.features, *list(self.head)[:-1]]

    def convert_classifier_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert a classifier's weights, fully connected layers to convolutions (Long et al. 2015, figure 2)."""
        converted = renumber_conv_weights(tensors, self.features)
        for old, new in (("classifier.0", "head.fc6"), ("classifier.3", "head.fc7")):
            weight, expected = tensors.get(f"{old}.weight"), self.get_parameter(f"{new}.weight")
            if weight is not None and weight.numel() == expected.numel():
                converted[f"{new}.weight"] = weight.view_as(expected)
                converted[f"{new}.bias"] = tensors[f"{old}.bias"]
        return converted


class FCNResNet(SegmentationModel):
    """FCN on a dilated ResNet, whose scores are interpolated to the image, as in torchvision."""

    backbone_prefix = "backbone"
    class_prefixes = ("classifier.4.", "aux_classifier.4.")

    def __init__(self, resnet: nn.Sequential, num_classes: int, aux_loss: bool) -> None:
        super().__init__()
        layers = OrderedDict(list(resnet.named_children())[:-3])  # without avgpool, flatten and fc
        dilate(layers["layer3"], 1, 2)
        dilate(layers["layer4"], 2, 4)
        self.backbone = nn.Sequential(layers)
        self.classifier = _build_fcn_head(2048, num_classes)
        self.aux_classifier = _build_fcn_head(1024, num_classes) if aux_loss else None

    def forward(self, images: Tensor) -> Scores:
        """Compute scores ``(N, classes, H, W)`` of normalized images ``(N, C, H, W)``.

        Returns:
            The scores; in training mode with an auxiliary classifier ``(scores, auxiliary scores)``.
        """
        height, width = images.shape[-2:]
        maps = self.backbone[:-1](images)  # N × 1024 × H/8 × W/8
        scores = self.classifier(self.backbone[-1](maps))  # from N × 2048 × H/8 × W/8
        scores = interpolate_bilinear(scores, height, width)
        if self.training and self.aux_classifier is not None:
            return scores, interpolate_bilinear(self.aux_classifier(maps), height, width)
        return scores

    def get_traceable_module(self) -> nn.Module:
        """Return the layers without the padding and resizing to the input size."""
        return nn.Sequential(OrderedDict(backbone=self.backbone, classifier=self.classifier))

    def convert_classifier_weights(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert a classifier's weights, without its last layer."""
        return {f"backbone.{key}": value for key, value in tensors.items() if not key.startswith("fc.")}


class TraceableFCN(nn.Module):
    """Traceable :class:`FCNVGG`, whose stages are registered as submodules."""

    def __init__(self, network: FCNVGG) -> None:
        super().__init__()
        for name, child in network.named_children():
            self.add_module(name, child)
        self.stages = nn.ModuleList(network.stages)
        self.compute_scores = network.compute_scores

    def forward(self, images: Tensor) -> Tensor:
        """Compute scores of images ``(N, C, H, W)``, whose sides are multiples of 32."""
        return self.compute_scores(images)


def dilate(stage: nn.Module, first_dilation: int, other_dilation: int) -> None:
    """Replace the strides of a ResNet stage by dilation, which keeps the receptive field of the filters.

    ``first_dilation`` and ``other_dilation`` are the dilations of the 3×3 convolutions in the first block and in the
    others.
    """
    for name, layer in stage.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                dilation = first_dilation if name.startswith("0.") else other_dilation
                layer.dilation, layer.padding = (dilation, dilation), (dilation, dilation)


def _build_zero_conv(inputs: int, classes: int) -> nn.Conv2d:
    """Build a 1×1 convolution with zero weights."""
    layer = nn.Conv2d(inputs, classes, 1)
    nn.init.zeros_(layer.weight)
    zero_bias(layer)
    return layer


def _build_fcn_head(inputs: int, classes: int) -> nn.Sequential:
    """Build torchvision's ``FCNHead``."""
    middle = inputs // 4
    return nn.Sequential(
        nn.Conv2d(inputs, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Conv2d(middle, classes, 1),
    )
