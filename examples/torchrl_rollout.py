"""TorchRL rollouts on an environment of a host: ``python examples/torchrl_rollout.py --url ws://sim-7:8000``.

What differs from a local script is the id that ``GymEnv`` is given, and ``url=`` where the host is another machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from torchrl.envs import GymEnv, RewardSum, StepCounter, TransformedEnv

import agentgpt_remote  # noqa: F401  # makes agentgpt/<id> known to Gymnasium


def main(arguments: Sequence[str] | None = None) -> float:
    """Roll a random policy out, and return its mean episode return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1", help="what the host serves, or a local id without --url")
    parser.add_argument("--url", help="where a host listens; without it, one is started on this machine")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    where = {} if options.url is None else {"url": options.url}
    env = TransformedEnv(GymEnv(f"agentgpt/{options.env_id}", **where))
    env.append_transform(StepCounter())
    env.append_transform(RewardSum())
    env.set_seed(options.seed)
    steps = env.rollout(options.steps, break_when_any_done=False)
    env.close()
    ended = steps["next", "done"].squeeze(-1)
    mean = steps["next", "episode_reward"][ended].mean().item()
    print(f"{len(steps)} steps, {int(ended.sum())} episodes, episode return {mean:.1f}")
    return mean


if __name__ == "__main__":
    main()
