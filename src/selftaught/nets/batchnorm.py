"""Batch norm whose statistics are those of the whole batch when it is divided over processes.

torch's SyncBatchNorm runs on GPUs only; this one runs wherever tensors can be summed, and gives the numbers of nn.BatchNorm on
the joined batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.core.launch import all_reduce_sum, joined_moments, place


def join_batch_norms(module: nn.Module) -> None:
    """Replace every batch norm inside of `module` by one over all processes; parameters, buffers and their names stay."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, JoinedBatchNorm):
                setattr(parent, name, JoinedBatchNorm.of(child))


class JoinedBatchNorm(_BatchNorm):
    """Batch norm over (B, C) or (B, C, ...) whose batch lies in parts in all processes; parts may differ in size."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> JoinedBatchNorm:
        """Take over the parameters and buffers of another batch norm."""
        joined = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        joined._parameters, joined._buffers = norm._parameters, norm._buffers
        joined.train(norm.training)
        return joined

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm takes (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        by_batch = self.training or not self.track_running_stats
        if not by_batch or place()[1] == 1:
            return super().forward(input)
        self._check_input_dim(input)
        out, mean, var, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.training and self.track_running_stats:
            self._follow(mean, var * (count / (count - 1).clamp(min=1)))
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics; `var` is the unbiased one, as in torch."""
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias with mean and variance over the joined batch; one message each way.

    With g = dL/dy * weight and h = (x - mean) / sqrt(var + eps), over N numbers per channel in all processes:
        dL/dx = (g - sum(g) / N - h * sum(g h) / N) / sqrt(var + eps)
    The gradients of weight and bias are those of the own part; they are averaged like all others.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        over = [d for d in range(x.ndim) if d != 1]
        own_var, own_mean = torch.var_mean(exact, over, correction=0)
        mean, var, count = joined_moments(own_mean, own_var, x.numel() // x.shape[1])
        out = nn.functional.batch_norm(exact, mean, var, weight, bias, False, 0.0, eps).to(x.dtype)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, var, count)
        return out, mean, var, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, scale, count = ctx.saved_tensors
        over = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        g = gradient.to(mean.dtype)
        h = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        sums = torch.stack([g.sum(over), (g * h).sum(over)])
        total = all_reduce_sum(sums) / count.to(sums.dtype)
        factor = scale if weight is None else scale * weight
        d_x = (g - total[0].view(shape) - h * total[1].view(shape)) * factor.view(shape)
        if weight is None:
            return d_x.to(x.dtype), None, None, None
        return d_x.to(x.dtype), sums[1].to(weight.dtype), sums[0].to(weight.dtype), None
