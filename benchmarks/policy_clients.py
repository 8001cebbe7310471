"""Many clients of one agent each beside one client with as many agents, through one policy server.

Usage: ``python -m benchmarks.policy_clients [--clients 32] [--model 5x256] [--window 16] [--seconds 4] [--rounds 3]``

Clients are threads of one process, the server is a process of its own. The two are measured in turns; the ratio is
that of the medians of their agent steps per second. ``alone`` is the same model called in the server's way without one:
the pass itself, for as many agents.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from agentgpt_remote.policy.bundle import save_bundle
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.local_server import LocalPolicyServer
from agentgpt_remote.policy.model import PolicyModel
from benchmarks.policy import ACTION_SPACE, OBSERVATION_SPACE, bare_call


def rate(call: Callable[[], object], seconds: float) -> float:
    """Return calls per second."""
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - begun)


def many_rate(policies: list[GPTPolicy], seconds: float) -> float:
    """Return calls per second of clients that each act for one agent in a thread."""
    rates = [0.0] * len(policies)
    observation = np.zeros(OBSERVATION_SPACE.shape, np.float32)

    def run(index: int) -> None:
        rates[index] = rate(lambda: policies[index](observation), seconds)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(policies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def main() -> None:
    """Parse the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--model", default="5x256", help="LAYERSxWIDTH")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the server's process when it starts
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers, width = map(int, options.model.split("x"))
    config = GPTConfig(num_layers=layers, d_model=width, num_heads=width // 32, max_input_states=options.window)
    model = PolicyModel(OBSERVATION_SPACE, ACTION_SPACE, config).eval().requires_grad_(False)
    n = options.clients
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(folder, model, provenance={"source": "benchmark"})
        with LocalPolicyServer(folder) as server:
            policies = [GPTPolicy(server.url, token=server.token) for _ in range(n)]
            ids, batch = [str(index) for index in range(n)], np.zeros((n, *OBSERVATION_SPACE.shape), np.float32)
            one = GPTPolicy(server.url, token=server.token)
            many_rate(policies, 0.5)
            rows: dict[str, list[float]] = {"alone": [], "one": [], "many": []}
            shared = []
            for _ in range(options.rounds):
                rows["alone"].append(n * rate(bare_call(model, n), options.seconds / 2))
                rows["one"].append(n * rate(lambda: one.select_action(ids, batch), options.seconds))
                before = one.status()["server"]
                rows["many"].append(many_rate(policies, options.seconds))
                after = one.status()["server"]
                shared.append((after["requests"] - before["requests"]) / (after["batches"] - before["batches"]))
            for policy in (*policies, one):
                policy.close()
    medians = {name: float(np.median(values)) for name, values in rows.items()}
    print(
        json.dumps(
            {
                "clients": n,
                "model": options.model,
                "agent_steps_per_s": {name: round(value) for name, value in medians.items()},
                "many_over_one": round(medians["many"] / medians["one"], 3),
                "requests_per_batch": round(float(np.median(shared)), 1),
            }
        )
    )


if __name__ == "__main__":
    main()
