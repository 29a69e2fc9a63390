"""Layers that compute in the precision of their weights under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def disable_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast on a device; the meta device, on which only shapes are computed, has none.

    A network gets the device from a parameter or buffer, since its inputs have none while ``torch.fx`` traces it.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
