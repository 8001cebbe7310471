"""Train on a Unity build that runs on another machine, and act in it with what was learned.

On the machine with the build: ``agentgpt serve unity:builds/3DBall.x86_64 --host 0.0.0.0``, with AGENTGPT_TOKEN set.
On the machine that learns, with the same token: ``python examples/unity_training.py --url ws://sim-7:8000``. With
``--build PATH`` in the place of ``--url``, the build runs here.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agentgpt_remote import AgentGPT, GPTPolicy, Hyperparameters
from agentgpt_remote.trainer.agent_evaluation import evaluate_agents_of


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, and return the mean episode return of an agent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", nargs="+", help="hosts that serve the same build")
    where.add_argument("--build", help="path of a build on this machine")
    parser.add_argument("--total-steps", type=int, default=100_000, help="decisions of all agents together")
    parser.add_argument("--runs-dir", type=Path, help="folder of runs; by default a temporary one")
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as temporary:
        env_id = None if options.build is None else f"unity:{options.build}"
        run = AgentGPT.train_on_local(
            Hyperparameters(env_id=env_id, max_steps=options.total_steps),
            env=options.url,
            run_id="unity",
            runs_dir=options.runs_dir or temporary,
        )
        status = run.wait()
        print(f"trained {status.env_steps} steps, return {status.episode_return}")
        policies = GPTPolicy.of_behaviors(run.run_dir / "policy")
        result = evaluate_agents_of(policies, env_id or options.url[0], episodes=10)
    for name, evaluation in result.behaviors.items():
        print(f"{name or 'the agents'}: return {evaluation.mean:.2f} over {evaluation.episodes} episodes")
    return result.together.mean


if __name__ == "__main__":
    main()
