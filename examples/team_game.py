"""A team game with two behaviours: PettingZoo's simple_tag, where three adversaries chase an agent that flees.

``python examples/team_game.py`` trains both sides against each other, then plays episodes with the two policies of the
bundle, agent by agent. ``--url ws://sim-7:8000`` plays where ``agentgpt serve pettingzoo:mpe2.simple_tag_v3`` runs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

from agentgpt_remote import AgentGPT, GPTPolicy, Hyperparameters, RemoteParallelEnv

SOURCE = "pettingzoo:mpe2.simple_tag_v3"


def main(arguments: Sequence[str] | None = None) -> float:
    """Train both sides, and return the adversaries' mean return with their policy against the agent's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="where a host serves the game; without it, one is started on this machine")
    parser.add_argument("--total-steps", type=int, default=200_000, help="decisions of all agents together")
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as runs_dir:
        hyperparameters = Hyperparameters(env_id=None if options.url else SOURCE, max_steps=options.total_steps)
        run = AgentGPT.train_on_local(hyperparameters, env=options.url, run_id="tag", runs_dir=runs_dir)
        run.wait()
        policies = GPTPolicy.of_behaviors(run.run_dir / "policy")
    returns = dict.fromkeys(policies, 0.0)
    with RemoteParallelEnv(None if options.url else SOURCE, url=options.url) as env:
        for episode in range(options.episodes):
            observations, _ = env.reset(seed=episode)
            for policy in policies.values():
                policy.reset_agents()
            while env.agents:
                actions = {}
                for name, policy in policies.items():
                    ids = [agent for agent in env.acting if env.behavior_of(agent) == name]
                    batch = policy.select_action(ids, [observations[agent] for agent in ids])
                    actions |= dict(zip(ids, batch, strict=True))
                observations, rewards, _, _, _ = env.step(actions)
                for agent, reward in rewards.items():
                    returns[env.behavior_of(agent)] += reward / options.episodes
    for name, total in returns.items():
        print(f"{name}: return {total:.1f} of the whole team")
    return returns["adversary"]


if __name__ == "__main__":
    main()
