"""Stable-Baselines3's PPO on environments of a host: ``python examples/sb3_ppo.py --url ws://sim-7:8000``.

Without ``--url``, a host process is started here. What differs from a local script is one line: ``SB3VecEnv.make``
in the place of ``make_vec_env``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from agentgpt_remote.wrappers.sb3 import SB3VecEnv


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, and return the mean episode return of the trained policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1", help="what the host serves, or a local id without --url")
    parser.add_argument("--url", help="where a host listens; without it, one is started on this machine")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--total-steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    envs = VecMonitor(SB3VecEnv.make(options.env_id, options.num_envs, url=options.url))
    try:
        model = PPO("MlpPolicy", envs, n_steps=128, batch_size=256, seed=options.seed, device="cpu")
        model.learn(options.total_steps)
        mean, std = evaluate_policy(model, envs, n_eval_episodes=10)
    finally:
        envs.close()
    print(f"episode return {mean:.1f} +/- {std:.1f} after {model.num_timesteps} steps")
    return float(mean)


if __name__ == "__main__":
    main()
