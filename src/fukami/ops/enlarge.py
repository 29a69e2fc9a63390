"""Maps of scores brought back to the size of the picture."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Answers = Tensor | tuple[Tensor, ...]


class Enlarge(nn.ConvTranspose2d):
    """A transposed convolution that begins as bilinear interpolation and may learn another (Long et al. 2015, 3.3).

    Each channel has a filter of its own: ``(N, channels, H, W)`` to ``(N, channels, factor H, factor W)``.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__(
            channels, channels, 2 * factor, stride=factor, padding=factor // 2, groups=channels, bias=False
        )
        rise = (torch.arange(2 * factor) + 0.5) / factor
        line = 1 - (rise - 1).abs()
        self.weight = nn.Parameter(line.outer(line).expand_as(self.weight).clone())


def whole(scores: Callable[[Tensor], Answers], pictures: Tensor, multiple: int) -> Answers:
    """The scores of pictures ``(N, C, H, W)`` of any size, by a network that takes multiples of so many pixels.

    Zeros, the mean colour of normalised pictures, are added to the right and below, and what is said of them cut off.
    """
    height, width = pictures.shape[-2:]
    found = scores(F.pad(pictures, (0, -width % multiple, 0, -height % multiple)))
    if isinstance(found, tuple):
        return tuple(each[..., :height, :width] for each in found)
    return found[..., :height, :width]
