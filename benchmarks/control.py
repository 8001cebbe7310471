"""Mean return at control values from 0 to 1: it must not decrease.

Usage: ``python -m benchmarks.control BUNDLE SOURCE [--episodes 100] [--seed 7] [--json]``

``BUNDLE`` is a trained policy, such as ``runs/CartPole-v1/policy`` of ``agentgpt train CartPole-v1``. A step down
counts only where it is larger than two standard errors of the difference.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math

from agentgpt_remote import GPTPolicy
from agentgpt_remote.trainer.evaluation import evaluate_source

VALUES = (0.0, 0.25, 0.5, 0.75, 1.0)


def measure(bundle: str, source: str, episodes: int, seed: int) -> list[tuple[float, float, float]]:
    """Return control value, mean return and its standard error."""
    rows = []
    for value in VALUES:
        with GPTPolicy(bundle, seed=seed) as policy:
            policy.set_control_value(control_value=value)
            result = evaluate_source(policy, source, episodes=episodes, seed=seed)
        rows.append((value, result.mean, result.std / math.sqrt(episodes)))
    return rows


def is_monotone(rows: list[tuple[float, float, float]]) -> bool:
    """Tell whether no mean is clearly below the one before it."""
    return all(
        after[1] >= before[1] - 2 * math.hypot(before[2], after[2]) for before, after in itertools.pairwise(rows)
    )


def main() -> None:
    """Parse the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("source")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.bundle, options.source, options.episodes, options.seed)
    if options.json:
        print(json.dumps({"source": options.source, "rows": rows, "monotone": is_monotone(rows)}))
        return
    for value, mean, error in rows:
        print(f"control {value:4.2f}: return {mean:9.2f} ± {error:.2f}")
    print("monotone" if is_monotone(rows) else "NOT monotone")


if __name__ == "__main__":
    main()
