"""RLlib's PPO on environments of a host: ``python examples/rllib_ppo.py --url ws://sim-7:8000``.

RLlib pins an older Gymnasium, so it has an environment of its own: ``pip install "agentgpt-remote[rllib]"``. What
differs from a local script is the environment's creator. RLlib asks it for a vector environment, which steps all
environments of a runner with one message.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env

from agentgpt_remote import RemoteEnv, RemoteVectorEnv


def make_env(config: dict[str, Any]) -> RemoteEnv | RemoteVectorEnv:
    """Return one remote environment, or as many as RLlib asks for."""
    if "num_envs" in config:
        return RemoteVectorEnv(config["source"], config["num_envs"], url=config["url"])
    return RemoteEnv(config["source"], url=config["url"])


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, and return the mean episode return of the last iteration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1", help="what the host serves, or a local id without --url")
    parser.add_argument("--url", help="where a host listens; without it, each runner starts one on its machine")
    parser.add_argument("--num-envs", type=int, default=8, help="of each runner")
    parser.add_argument("--num-runners", type=int, default=0, help="processes that collect; 0 for this one")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--steps-per-iteration", type=int, default=4000)
    options = parser.parse_args(arguments)

    register_env("remote", make_env)
    config = (
        PPOConfig()
        .environment("remote", env_config={"source": options.env_id, "url": options.url})
        .env_runners(
            num_env_runners=options.num_runners,
            num_envs_per_env_runner=options.num_envs,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .training(train_batch_size_per_learner=options.steps_per_iteration, minibatch_size=256, num_epochs=6, lr=1e-3)
    )
    algorithm = config.build_algo()
    mean = float("nan")
    try:
        for _ in range(options.iterations):
            told = algorithm.train()["env_runners"]
            mean = float(told["episode_return_mean"])
            print(f"steps={told['num_env_steps_sampled_lifetime']:.0f} episode_return={mean:.1f}")
    finally:
        algorithm.stop()
    return mean


if __name__ == "__main__":
    main()
