"""What torch computes on."""

from __future__ import annotations

import torch


def describe_device() -> str:
    """Return torch's version, the device that training takes by default, and its threads, in one line."""
    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name()}), torch {torch.__version__}"
    return f"cpu with up to {torch.get_num_threads()} threads, torch {torch.__version__}"


def num_gpus() -> int:
    """Return how many GPUs torch sees."""
    return torch.cuda.device_count()
