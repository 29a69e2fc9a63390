"""Number of input channels of recipes for images."""

from collections.abc import Sequence
from dataclasses import dataclass

from fukami.engine.recipe import FieldGroup
from fukami.engine.supervised import IMAGENET_MEAN, IMAGENET_STD
from fukami.errors import UsageError
from fukami.image.tiff import MAX_CHANNELS

COLOR_AUGMENTATIONS = ("saturation", "hue", "grayscale", "trivial", "rand")  # of red, green and blue


def check_channels(channels: int, augment: Sequence[str]) -> None:
    """Check the number of channels, and that the augmentation supports it.

    Raises:
        UsageError: there are too many channels, or a color transform is for red, green and blue only.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise UsageError(f"channels should be between 1 and {MAX_CHANNELS}, not {channels}")
    unsupported = {spec.partition("=")[0] for spec in augment} & {*COLOR_AUGMENTATIONS}
    if channels not in (1, 3) and unsupported:
        raise UsageError(
            f"--augment {' '.join(sorted(unsupported))} is for grayscale and color; with --channels {channels}, use "
            "brightness, contrast and geometric transforms"
        )


@dataclass(frozen=True, kw_only=True)
class ChannelFields(FieldGroup):
    """Input channels of a network for images."""

    channels: int = 3
    """Input channels: 1 grayscale, 3 color, or the number that the images have, such as 4 in RGBA or a satellite's
    TIFF."""
    augment: tuple[str, ...] = ()
    """Data augmentation of the training images."""

    def __post_init__(self) -> None:
        """Check the number of channels, and that the augmentation supports it."""
        super().__post_init__()
        check_channels(self.channels, self.augment)

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of ImageNet in [0, 1]; averaged over the colors unless the input is in color."""
        if self.channels == 3:
            return IMAGENET_MEAN, IMAGENET_STD
        return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)
