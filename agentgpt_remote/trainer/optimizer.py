"""Adam over all parameters of a model as one vector.

A small model's step is dominated by the number of operators, not by arithmetic: one vector needs ten of
them, whatever the number of parameters. (Constructing a ``torch.optim`` optimizer also imports
``torch._dynamo``, which takes two seconds.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from agentgpt_remote.trainer.ranks import ALONE, Ranks


class FlatAdam:
    """Adam (Kingma and Ba 2015) with the gradient's norm clipped.

    Args:
        parameters: of one model, empty ones left out; they may be loaded from outside between steps.
        max_norm: the gradient is scaled down to this norm.
        betas: decay of the gradient's and of its square's mean.
        eps: added to the denominator.
        ranks: whose gradients are added up.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        max_norm: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        ranks: Ranks = ALONE,
    ) -> None:
        # An action space without numbers has an empty log-deviation, which no loss depends on.
        self.parameters: list[Tensor] = [parameter for parameter in parameters if parameter.numel()]
        self.max_norm, self.betas, self.eps, self._ranks = max_norm, betas, eps, ranks
        self.steps = 0
        size = sum(parameter.numel() for parameter in self.parameters)
        self._mean = torch.zeros(size, device=self.parameters[0].device)
        self._square = torch.zeros_like(self._mean)
        self._change = torch.zeros_like(self._mean)
        pieces = torch.split(self._change, [parameter.numel() for parameter in self.parameters])
        self._pieces = [piece.view_as(parameter) for piece, parameter in zip(pieces, self.parameters, strict=True)]

    @torch.no_grad()
    def step(self, gradients: Iterable[Tensor], learning_rate: float) -> float:
        """Change the parameters, unless the gradient is not finite.

        Args:
            gradients: one per parameter.
            learning_rate: of this step.

        Raises:
            RankLost: another rank has ended, or did not answer in time.

        Returns:
            The gradient's norm before clipping; where it is not finite, nothing was changed.
        """
        gradient = self._ranks.sum_(torch.cat([part.reshape(-1) for part in gradients]))
        norm = float(torch.linalg.vector_norm(gradient))
        if not math.isfinite(norm):
            return norm
        if norm > self.max_norm:
            gradient.mul_(self.max_norm / norm)
        self.steps += 1
        first, second = self.betas
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        # Kingma and Ba 2015, section 2: the bias corrections folded into the step size and eps.
        correction = math.sqrt(1 - second**self.steps)
        torch.sqrt(self._square, out=self._change).add_(self.eps * correction)
        rate = learning_rate * correction / (1 - first**self.steps)
        torch.div(self._mean, self._change, out=self._change).mul_(-rate)
        torch._foreach_add_(self.parameters, self._pieces)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the running means and the number of steps."""
        return {"steps": self.steps, "mean": self._mean.clone(), "square": self._square.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.steps = int(state["steps"])
        self._mean.copy_(state["mean"])
        self._square.copy_(state["square"])
