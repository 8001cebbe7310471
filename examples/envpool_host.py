"""A host that steps EnvPool's environments: ``python examples/envpool_host.py envpool:Walker2d-v4``.

The same as ``agentgpt serve envpool:Walker2d-v4``. Many environments step in C++ threads on the host; a client takes
all of them forward with one message. ``--url`` measures a host that runs already, from where you are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from agentgpt_remote import RemoteVectorEnv, serve


def main(arguments: Sequence[str] | None = None) -> float:
    """Serve, step from a client in this process, and return environment steps per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="envpool:Walker2d-v4")
    parser.add_argument("--url", help="where a host listens; without it, one is started in this process")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args(arguments)

    with ExitStack() as stack:
        url = options.url or stack.enter_context(serve(options.source, port=0, block=False)).url
        envs = stack.enter_context(RemoteVectorEnv(options.source, options.num_envs, url=url))
        envs.action_space.seed(0)
        actions = [envs.action_space.sample() for _ in range(16)]
        envs.reset(seed=0)
        returns = np.zeros(envs.num_envs)
        start = time.perf_counter()
        for step in range(options.steps):
            _, rewards, _, _, _ = envs.step(actions[step % len(actions)])
            returns += rewards
        steps_per_s = options.steps * envs.num_envs / (time.perf_counter() - start)
    print(f"{options.source} at {url}: {steps_per_s:,.0f} steps/s, mean reward {returns.mean() / options.steps:.3f}")
    return steps_per_s


if __name__ == "__main__":
    main()
