"""A trainer in a process of its own, on environments of that process."""

from __future__ import annotations

import sys

from gymnasium.vector import SyncVectorEnv

from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.loop import train
from tests.trainer.tiny_envs import Echo

SMALL = {
    "rollout_steps": 128,
    "d_model": 32,
    "num_heads": 2,
    "max_input_states": 4,
    "chunk_steps": 16,
    "torch_threads": 1,
    "use_tensorboard": False,
    "checkpoint_interval_s": 1e-6,
}


def main() -> int:
    run_dir, *changes = sys.argv[1:]
    values = {name: float(value) for name, _, value in (change.partition("=") for change in changes)}
    whole = {name: int(value) if value.is_integer() else value for name, value in values.items()}
    hyperparameters = Hyperparameters(**{**SMALL, **whole, "resume_training": True})  # type: ignore[arg-type]
    try:
        train(hyperparameters, run_dir=run_dir, envs=[SyncVectorEnv([Echo] * 4)])
    except TrainingFailed as error:
        sys.stderr.write(f"TrainingFailed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
