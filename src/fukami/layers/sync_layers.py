"""Batch normalization and dropout over the global batch of several processes."""

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from fukami.layers.autograd import AutogradContext


def convert_sync_layers(module: nn.Module) -> nn.Module:
    """Convert batch normalization and dropout of a module to the global batch of all processes, in place.

    A training step of several processes then equals that of one process with the global batch, up to rounding. Process
    ``r`` of ``w`` must hold the rows ``r::w`` of the batch, and all processes must have the same random state.
    """
    is_cpu = next(module.parameters()).device.type == "cpu"
    batch_norm = CPUSyncBatchNorm if is_cpu else nn.SyncBatchNorm  # torch's has fused kernels, only for GPUs
    replacements = {nn.BatchNorm1d: batch_norm, nn.BatchNorm2d: batch_norm, nn.Dropout: SyncDropout}
    for child in module.modules():
        replacement = replacements.get(type(child))
        if replacement is not None:
            # Not a new layer, as of nn.SyncBatchNorm.convert_sync_batchnorm: other lists may contain this one, such as
            # the stages of a network.
            child.__class__ = replacement
        if isinstance(child, nn.SyncBatchNorm):
            child.process_group = None  # all processes
    return module


class SyncDropout(nn.Dropout):
    """Dropout that draws the mask of the global batch and applies this process's rows of it."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop values of ``(N, ...)`` in training mode."""
        if not self.training or self.p == 0:
            return input
        rank, world = dist.get_rank(), dist.get_world_size()
        ones = input.new_ones((world * len(input), *input.shape[1:]))
        if input.ndim == 4 and not input.is_contiguous():  # values are drawn in the order of the memory
            ones = ones.contiguous(memory_format=torch.channels_last)
        return input * F.dropout(ones, self.p)[rank::world]


class CPUSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Synchronized batch normalization for the CPU (``nn.SyncBatchNorm`` supports only GPUs)."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"CPUSyncBatchNorm expects an input (N, C, ...), not {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``(N, C, ...)``."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, var, count = _SyncBatchNormFunction.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (count / (count - 1)), momentum)
        return output


class _BatchNormContext(AutogradContext, Protocol):
    eps: float


class _SyncBatchNormFunction(torch.autograd.Function):
    """Batch normalization over the global batch (Ioffe and Szegedy 2015, algorithm 1).

    Means and variances of the processes are combined as in Chan et al. 1979, equation 2.1.
    """

    apply: ClassVar[Callable[[Tensor, Tensor | None, Tensor | None, float], tuple[Tensor, Tensor, Tensor, Tensor]]]

    @staticmethod
    def forward(
        ctx: _BatchNormContext, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        var, mean = torch.var_mean(_promote_to_float32(input), _get_reduction_dims(input), correction=0)
        local_stats = torch.stack([mean, var, torch.full_like(mean, input.numel() // input.shape[1])])
        all_stats = [torch.empty_like(local_stats) for _ in range(dist.get_world_size())]
        dist.all_gather(all_stats, local_stats)
        means, variances, counts = torch.stack(all_stats).unbind(1)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean) ** 2)).sum(0) / count
        ctx.save_for_backward(input, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(input, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: _BatchNormContext, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        input, weight, mean, var, count = ctx.saved_tensors
        shape = (1, -1, *[1] * (input.ndim - 2))
        scale = (var + ctx.eps).rsqrt()
        normalized = (_promote_to_float32(input) - mean.view(shape)) * scale.view(shape)
        gradient = _promote_to_float32(gradients[0])
        sums = torch.stack(
            [gradient.sum(_get_reduction_dims(input)), (gradient * normalized).sum(_get_reduction_dims(input))]
        )
        local_sums = sums.clone()  # DDP averages the gradients of the parameters later
        dist.all_reduce(sums)
        mean_gradient, mean_product = (sums / count).unbind(0)
        scale = scale if weight is None else scale * weight
        input_gradient = scale.view(shape) * (
            gradient - mean_gradient.view(shape) - normalized * mean_product.view(shape)
        )
        parameter_gradients = (None, None) if weight is None else (local_sums[1], local_sums[0])
        return input_gradient.to(input.dtype), *parameter_gradients, None


def _get_reduction_dims(input: Tensor) -> list[int]:
    """Return all dimensions except the channel dimension."""
    return [dimension for dimension in range(input.ndim) if dimension != 1]


def _promote_to_float32(tensor: Tensor) -> Tensor:
    """Convert to float32 unless it is float64: half precision is too coarse for sums."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
