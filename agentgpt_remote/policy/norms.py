"""RMSNorm, fast on CPUs as well."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = torch.finfo(torch.float32).eps  # of torch's RMSNorm


def rms_norm(x: Tensor) -> Tensor:
    """Return x with mean square 1 in its last dimension; no gain, since the linear map that follows can express it."""
    if x.requires_grad and x.device.type == "cpu" and x.dtype is torch.float32:
        normed: Tensor = _RMSNorm.apply(x)  # type: ignore[no-untyped-call]
        return normed
    return F.rms_norm(x, (x.shape[-1],))


class _RMSNorm(torch.autograd.Function):
    """The norm in few passes over memory: torch has no kernel of it for CPUs, neither forward nor backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale.square_().mul_(1 / x.shape[-1]).add_(EPS).rsqrt_()
        y: Tensor = x * scale
        ctx.save_for_backward(x, y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        x: Tensor
        y: Tensor
        scale: Tensor
        x, y, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more, as a function of x
            scale = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
            y = x * scale
            return (gradient - y * (gradient * y).mean(-1, keepdim=True)) * scale
        along = (gradient * y).mean(-1, keepdim=True)
        return torch.addcmul(gradient, y, along, value=-1).mul_(scale)
