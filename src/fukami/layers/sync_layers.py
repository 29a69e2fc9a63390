"""Layers that treat the batches of several processes as the one batch that they are."""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F


def convert_sync_layers(module: nn.Module) -> nn.Module:
    """The module, in place: batch normalisation over the batch of all processes, dropout drawn for all of it.

    With it, a step of several processes is that of one process with the whole batch, but for rounding. Process ``r`` of
    ``w`` has the rows ``r::w`` of the batch, and every process draws the same random numbers.
    """
    if next(module.parameters()).device.type != "cpu":
        # fused kernels, which torch has for GPUs alone
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    kinds = {nn.BatchNorm1d: CPUSyncBatchNorm, nn.BatchNorm2d: CPUSyncBatchNorm, nn.Dropout: SyncDropout}
    for child in module.modules():
        kind = kinds.get(type(child))
        if kind is not None:
            child.__class__ = kind  # parameters, statistics, mode and place in the network all stay
    return module


class SyncDropout(nn.Dropout):
    """Dropout whose mask is this process's rows of the mask that one process would draw for the whole batch."""

    def forward(self, input: Tensor) -> Tensor:
        """``(N, ...)`` to ``(N, ...)``."""
        if not self.training or self.p == 0:
            return input
        rank, world = dist.get_rank(), dist.get_world_size()
        whole = input.new_ones((world * len(input), *input.shape[1:]))
        return input * F.dropout(whole, self.p)[rank::world]


class CPUSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the mean and the variance over all processes (``nn.SyncBatchNorm`` is for GPUs)."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (N, C, ...), not {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, ...)`` to ``(N, C, ...)``."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, var, count = _SyncBatchNormFunction.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (count / (count - 1)), momentum)
        return output  # type: ignore[no-any-return]


class _SyncBatchNormFunction(torch.autograd.Function):
    """Ioffe and Szegedy 2015, algorithm 1, over the batches of all processes.

    Means and variances of the processes are put together as in Chan et al. 1979, equation 2.1.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        var, mean = torch.var_mean(_promote_to_float32(input), _get_reduction_dims(input), correction=0)
        own = torch.stack([mean, var, torch.full_like(mean, input.numel() // input.shape[1])])
        every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(every, own)
        means, variances, counts = torch.stack(every).unbind(1)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean) ** 2)).sum(0) / count
        ctx.save_for_backward(input, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(input, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        input, weight, mean, var, count = ctx.saved_tensors
        shape = (1, -1, *[1] * (input.ndim - 2))
        scale = (var + ctx.eps).rsqrt()
        normal = (_promote_to_float32(input) - mean.view(shape)) * scale.view(shape)
        gradient = _promote_to_float32(gradients[0])
        sums = torch.stack(
            [gradient.sum(_get_reduction_dims(input)), (gradient * normal).sum(_get_reduction_dims(input))]
        )
        own = sums.clone()  # those of the parameters are averaged with all others later
        dist.all_reduce(sums)
        by_bias, by_weight = (sums / count).unbind(0)
        scale = scale if weight is None else scale * weight
        by_input = scale.view(shape) * (gradient - by_bias.view(shape) - normal * by_weight.view(shape))
        parameters = (None, None) if weight is None else (own[1], own[0])
        return by_input.to(input.dtype), *parameters, None


def _get_reduction_dims(input: Tensor) -> list[int]:
    """Every dimension but that of the channels."""
    return [dimension for dimension in range(input.ndim) if dimension != 1]


def _promote_to_float32(tensor: Tensor) -> Tensor:
    """At least float32: halves are too coarse for sums."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
