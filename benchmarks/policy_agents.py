"""What agents cost that act in this process: memory of each, and time as they come and go.

Usage: ``python -m benchmarks.policy_agents [memory churn] [--model 5x256] [--window 64] [--agents 1024]``

memory: resident memory between a policy that acts for 16 agents and one that acts for ``--agents``, whose caches are
full, over the bytes of their keys and values.

churn: in each call a tenth of the agents ends and others take their places. The ratio is that of the median times of
the last tenth of the calls and of the first; beside it the resident memory after the first and after the last tenth,
and what a call takes of agents that stay.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch

from agentgpt_remote.policy.bundle import save_bundle
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.model import PolicyModel
from benchmarks.common import parser, print_table, write_report
from benchmarks.policy import ACTION_SPACE, OBSERVATION_SPACE

_FEW = 16
_STAYING_CALLS = 100


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process(os.getpid()).memory_info().rss)


def act(policy: GPTPolicy, ids: list[str], calls: int) -> None:
    """Act for agents some times."""
    observations = np.zeros((len(ids), *OBSERVATION_SPACE.shape), np.float32)
    for _ in range(calls):
        policy.select_action(ids, observations)


def memory(policy: GPTPolicy, config: GPTConfig, agents: int) -> dict[str, Any]:
    """Return the row of memory."""
    ids = [f"agent-{index}" for index in range(agents)]
    act(policy, ids[:_FEW], config.max_input_states)
    before = resident_bytes()
    act(policy, ids, config.max_input_states + 2)
    each = (resident_bytes() - before) / (agents - _FEW)
    cache = 2 * 4 * config.num_layers * config.d_model * config.max_input_states
    return {"measure": "memory", "bytes_per_agent": round(each), "cache_bytes": cache, "ratio": round(each / cache, 3)}


def churn(policy: GPTPolicy, agents: int, calls: int) -> dict[str, Any]:
    """Return the row of agents that come and go."""
    rng = np.random.default_rng(0)
    ids = [f"agent-{index}" for index in range(agents)]
    observations = np.zeros((agents, *OBSERVATION_SPACE.shape), np.float32)
    staying: list[float] = []
    for _ in range(_STAYING_CALLS):
        start = time.perf_counter()
        policy.select_action(ids, observations)
        staying.append(time.perf_counter() - start)
    durations, resident, joined = [], [], agents
    part = calls // 10
    for call in range(calls):
        places = rng.choice(agents, agents // 10, replace=False)
        ended = [ids[place] for place in places]
        for place in places:
            ids[place] = f"agent-{joined}"
            joined += 1
        start = time.perf_counter()
        policy.select_action(ids, observations, terminated_agent_ids=ended)
        durations.append(time.perf_counter() - start)
        if call + 1 in (part, calls):
            resident.append(resident_bytes())
    if policy.get_num_agents() != agents:
        raise RuntimeError(f"{policy.get_num_agents()} agents are held: expected {agents}")
    first, last = median(durations[:part]), median(durations[-part:])
    return {
        "measure": "churn",
        "staying_ms": round(1e3 * median(staying), 3),
        "first_ms": round(1e3 * first, 3),
        "last_ms": round(1e3 * last, 3),
        "ratio": round(last / first, 3),
        "growth_mb": round((resident[1] - resident[0]) / 2**20, 1),
    }


def main() -> None:
    """Parse the options, measure and print."""
    made = parser(str(__doc__))
    made.add_argument("measures", nargs="*", choices=("memory", "churn"), default=["memory", "churn"])
    made.add_argument("--model", default="5x256", help="LAYERSxWIDTH")
    made.add_argument("--window", type=int, default=64)
    made.add_argument("--agents", type=int, default=1024)
    made.add_argument("--calls", type=int, default=10_000)
    told = made.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers, width = map(int, told.model.split("x"))
    config = GPTConfig(num_layers=layers, d_model=width, num_heads=width // 32, max_input_states=told.window)
    model = PolicyModel(OBSERVATION_SPACE, ACTION_SPACE, config).eval().requires_grad_(False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(Path(folder), model, provenance={"source": "benchmark"})
        for measure in told.measures:
            with GPTPolicy(folder) as policy:
                measured = memory(policy, config, told.agents) if measure == "memory" else None
                rows.append(measured or churn(policy, told.agents, told.calls))
                print(rows[-1], flush=True)
    for row in rows:
        print_table([row])
    write_report(told.json, {"benchmark": "policy_agents", "rows": rows})


if __name__ == "__main__":
    main()
