"""RMSNorm as torch's own, once and twice differentiated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agentgpt_remote.policy.norms import _RMSNorm, rms_norm


def torch_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
def test_norm_and_gradient_equal_those_of_torch(scale: float) -> None:
    x = (torch.randn(3, 5, 64) * scale).requires_grad_()
    gradient = torch.randn(3, 5, 64)
    ours, theirs = rms_norm(x), torch_norm(x)
    torch.testing.assert_close(ours, theirs)
    (of_ours,), (of_theirs,) = (torch.autograd.grad(y, x, gradient) for y in (ours, theirs))
    torch.testing.assert_close(of_ours, of_theirs, rtol=1e-4, atol=1e-5 * float(of_theirs.abs().max()))


def test_gradients_of_the_first_and_second_order_are_right() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_RMSNorm.apply, (x,))
    assert torch.autograd.gradgradcheck(_RMSNorm.apply, (x,))


def test_gradient_is_the_same_where_it_will_be_differentiated() -> None:
    x, gradient = torch.randn(4, 32, requires_grad=True), torch.randn(4, 32)
    (once,) = torch.autograd.grad(rms_norm(x), x, gradient)
    (for_twice,) = torch.autograd.grad(rms_norm(x), x, gradient, create_graph=True)
    torch.testing.assert_close(once, for_twice.detach())


def test_what_is_not_differentiated_is_the_same() -> None:
    x = torch.randn(4, 32)
    with torch.inference_mode():
        normed = rms_norm(x)
    torch.testing.assert_close(normed, rms_norm(x.requires_grad_()).detach())
