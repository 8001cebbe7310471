from __future__ import annotations

import torch

from agentgpt_remote.trainer.optimizer import FlatAdam


def problem(seed: int) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)), torch.randn(16, 3)


def test_steps_equal_torchs_adam_with_clipping() -> None:
    (ours, x), (theirs, _) = problem(0), problem(0)
    mine = FlatAdam(ours.parameters(), max_norm=0.1, betas=(0.9, 0.95), eps=1e-6)
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-6)
    for _ in range(20):
        mine.step(torch.autograd.grad((ours(x) - 3).square().mean(), mine.parameters), 1e-2)
        reference.zero_grad()
        (theirs(x) - 3).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        reference.step()
    for got, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_gradient_that_is_not_finite_changes_nothing() -> None:
    model, x = problem(0)
    optimizer = FlatAdam(model.parameters(), max_norm=1.0)
    before = [parameter.clone() for parameter in model.parameters()]
    gradients = list(torch.autograd.grad(model(x).sum(), optimizer.parameters))
    gradients[0][0, 0] = float("nan")
    norm = optimizer.step(gradients, 1e-2)
    assert norm != norm
    assert optimizer.steps == 0
    for got, wanted in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_state_goes_on_where_it_was() -> None:
    (first, x), (second, _) = problem(0), problem(0)
    a, b = FlatAdam(first.parameters(), max_norm=1.0), FlatAdam(second.parameters(), max_norm=1.0)
    a.step(torch.autograd.grad(first(x).sum(), a.parameters), 1e-2)
    second.load_state_dict(first.state_dict())
    b.load_state_dict(a.state_dict())
    for model, optimizer in ((first, a), (second, b)):
        optimizer.step(torch.autograd.grad(model(x).sum(), optimizer.parameters), 1e-2)
    for got, wanted in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
