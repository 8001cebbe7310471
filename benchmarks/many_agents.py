"""A cooperative PettingZoo task: random actions, Stable-Baselines3's PPO with shared parameters, this package's GPT.

    python -m benchmarks.many_agents --steps 300000 --seeds 0 1

All learn from as many decisions of agents and are measured on the same episodes: the mean return of an agent, with the
likeliest actions and with sampled ones. SB3 learns through SuperSuit, as PettingZoo's tutorials do, with its defaults
but for a batch of 256. Both have gamma 0.9, which suits episodes of 25 steps.

Needs ``pip install supersuit stable-baselines3 mpe2``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TASK = "mpe2.simple_spread_v3"
NUM_ENVS, EPISODES, EVAL_SEED = 16, 200, 1_000_003
GAMMA = 0.9  # an episode has 25 steps: what lies 100 steps ahead, as by default, is never seen
Act = Callable[[dict[str, Any]], dict[str, Any]]


def play(make: Callable[[], Any], act: Act, begin: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Return the mean over episodes of an agent's return, and the standard error of the mean."""
    env = make()
    returns = []
    for episode in range(EPISODES):
        observations, _ = env.reset(seed=EVAL_SEED + episode)
        begin()
        total, agents = 0.0, len(env.agents)
        while env.agents:
            observations, rewards, _, _, _ = env.step(act(observations))
            total += sum(rewards.values())
        returns.append(total / agents)
    env.close()
    return float(np.mean(returns)), float(np.std(returns) / EPISODES**0.5)


def random_policy(task: str) -> dict[str, Any]:
    """Measure random actions."""
    module = importlib.import_module(task)
    env = module.parallel_env()
    env.reset(seed=0)
    spaces = {agent: env.action_space(agent) for agent in env.possible_agents}
    for index, space in enumerate(spaces.values()):
        space.seed(index)
    mean, error = play(module.parallel_env, lambda seen: {agent: spaces[agent].sample() for agent in seen})
    return {"contender": "random", "return": mean, "error": error}


def sb3(task: str, steps: int, seed: int) -> dict[str, Any]:
    """Train and measure Stable-Baselines3's PPO."""
    import supersuit
    from stable_baselines3 import PPO
    from stable_baselines3.common.utils import set_random_seed

    module = importlib.import_module(task)
    began = time.perf_counter()
    env = supersuit.pettingzoo_env_to_vec_env_v1(module.parallel_env())
    env = supersuit.concat_vec_envs_v1(env, NUM_ENVS, num_cpus=0, base_class="stable_baselines3")
    set_random_seed(seed)  # SuperSuit's environments take no seed
    model = PPO("MlpPolicy", env, batch_size=256, n_steps=128, gamma=GAMMA, device="cpu")
    model.learn(steps)
    wall_s = time.perf_counter() - began

    def act(seen: dict[str, Any], deterministic: bool) -> dict[str, Any]:
        actions, _ = model.predict(np.stack(list(seen.values())), deterministic=deterministic)
        return dict(zip(seen, actions, strict=True))

    told: dict[str, Any] = {"contender": "sb3", "seed": seed, "wall_s": wall_s}
    for name, deterministic in (("greedy", True), ("sampled", False)):
        mean, error = play(module.parallel_env, lambda seen, how=deterministic: act(seen, how))  # type: ignore[misc]
        told |= {name: mean, f"{name}_error": error}
    return told


def gpt(task: str, steps: int, seed: int, **settings: Any) -> dict[str, Any]:
    """Train and measure this package's GPT."""
    from agentgpt_remote import GPTPolicy, Hyperparameters
    from agentgpt_remote.trainer.loop import train

    module = importlib.import_module(task)
    values = {"env_id": f"pettingzoo:{task}", "num_envs": NUM_ENVS, "gamma_init": GAMMA}
    hyperparameters = Hyperparameters.from_dict(values | {"max_steps": steps, "seed": seed} | settings)
    with tempfile.TemporaryDirectory() as folder:
        result = train(hyperparameters, run_dir=Path(folder) / "run")
        told: dict[str, Any] = {"contender": "gpt", "seed": seed, "wall_s": result.wall_s}
        for name, deterministic in (("greedy", True), ("sampled", False)):
            with GPTPolicy(result.bundle, deterministic=deterministic, seed=seed) as policy:

                def act(seen: dict[str, Any], policy: GPTPolicy = policy) -> dict[str, Any]:
                    actions = policy.select_action(list(seen), list(seen.values()))
                    return dict(zip(seen, actions, strict=True))

                mean, error = play(module.parallel_env, act, policy.reset_agents)
                told |= {name: mean, f"{name}_error": error}
    return told


def main() -> None:
    """Run the contenders and print one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--contenders", nargs="+", default=["random", "sb3", "gpt"])
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    chosen = parser.parse_args()
    settings = {name: json.loads(value) for name, _, value in (item.partition("=") for item in chosen.set)}
    if "random" in chosen.contenders:
        print(json.dumps(random_policy(chosen.task)), flush=True)
    for seed in chosen.seeds:
        if "sb3" in chosen.contenders:
            print(json.dumps(sb3(chosen.task, chosen.steps, seed)), flush=True)
        if "gpt" in chosen.contenders:
            print(json.dumps(gpt(chosen.task, chosen.steps, seed, **settings)), flush=True)


if __name__ == "__main__":
    main()
