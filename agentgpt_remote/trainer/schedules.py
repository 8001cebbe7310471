"""How numbers change over a run."""

from __future__ import annotations

import math

from agentgpt_remote.trainer.hyperparameters import Hyperparameters, required


def learning_rate(hyperparameters: Hyperparameters, progress: float, updates: int) -> float:
    """Return the actor's learning rate, warm-up included.

    Args:
        hyperparameters: resolved.
        progress: fraction of the run.
        updates: gradient steps taken.
    """
    high, low = required(hyperparameters.lr_init), required(hyperparameters.lr_end)
    progress = min(max(progress, 0.0), 1.0)
    if hyperparameters.lr_scheduler == "linear":
        rate = high + (low - high) * progress
    elif hyperparameters.lr_scheduler == "cosine":
        rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        rate = high
    warmup = hyperparameters.lr_warmup_updates
    return rate * min(1.0, (updates + 1) / warmup) if warmup else rate
