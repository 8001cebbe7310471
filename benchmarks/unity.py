"""Unity players: steps per second through a host against UnityEnvironment driven directly, and by the protobuf in use.

    python -m benchmarks.unity
    pip install --target /tmp/protobuf-3.20 --no-deps protobuf==3.20.3
    python -m benchmarks.unity --pure-python /tmp/protobuf-3.20

The player is the tests' stand-in, with 16 agents that see numbers and take two; ``--player PATH`` takes a real build.
Each contender is a process of its own, they take turns, and the median of their rounds counts. ``pure_python`` has the
host's side on pure-Python protobuf, with the player as it is; ``pure_python_both`` has the stand-in on it as well.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS, WARM_UP, ROUNDS, AGENTS = 1000, 100, 5, 16


def direct(player: str) -> dict[str, Any]:
    """Return the steps per second of UnityEnvironment, imported through the compatibility layer."""
    from agentgpt_remote.wrappers.unity import compat

    unity = compat.load()
    import google.protobuf
    from google.protobuf.internal import api_implementation
    from mlagents_envs.base_env import ActionTuple
    from mlagents_envs.side_channel.stats_side_channel import StatsSideChannel

    os.environ.pop("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", None)  # the player has been told by PYTHONPATH, or not
    stats = StatsSideChannel()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = unity.UnityEnvironment(player, base_port=port, no_graphics=True, seed=1, side_channels=[stats])
    try:
        env.reset()

        def step() -> None:
            for name, spec in env.behavior_specs.items():
                decisions, _ = env.get_steps(name)
                actions: ActionTuple = spec.action_spec.empty_action(len(decisions))
                env.set_actions(name, actions)
            env.step()
            stats.get_and_reset_stats()

        rate = _rate(step)
    finally:
        env.close()
    return {"steps_per_s": rate, "protobuf": google.protobuf.__version__, "implementation": api_implementation.Type()}


def through_host(player: str) -> dict[str, Any]:
    """Return the steps per second of a client of a host process, over its socket."""
    import numpy as np

    from agentgpt_remote.wrappers.remote_agents import RemoteAgents

    with RemoteAgents(f"unity:{player}", spin_wait=True, time_scale=None) as env:
        turns = env.reset()

        def step() -> None:
            nonlocal turns
            actions = {}
            for name, turn in turns.items():
                if turn.acting.agent_ids:
                    space: Any = env.behaviors[name].action_space
                    actions[name] = np.zeros((len(turn.acting.agent_ids), *space.shape), space.dtype)
            turns = env.step(actions)

        return {"steps_per_s": _rate(step)}


def _rate(step: Any) -> float:
    for _ in range(WARM_UP):
        step()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS / (time.perf_counter() - began)


def _measure(contender: str, player: str, pure_python: str | None = None, both: bool = False) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.unity", "--contender", contender, "--player", player]
    words += [] if pure_python is None else ["--pure-python", pure_python]
    variables = dict(os.environ)
    if both and pure_python is not None:
        variables["PYTHONPATH"] = f"{pure_python}{os.pathsep}{variables.get('PYTHONPATH', '')}"
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=300, env=variables)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    """Measure the contenders in turn, and print their medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--player", help="path of a build")
    parser.add_argument("--pure-python", metavar="FOLDER", help="where protobuf 3.20.3 was installed to")
    parser.add_argument("--contender", choices=["direct", "host"])
    chosen = parser.parse_args()
    if chosen.contender is not None:
        if chosen.pure_python is not None:
            sys.path.insert(0, chosen.pure_python)
            os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
        print(json.dumps({"direct": direct, "host": through_host}[chosen.contender](chosen.player)))
        return
    with tempfile.TemporaryDirectory() as folder:
        player = chosen.player
        if player is None:
            from tests.unity.stand_in import write_player

            player = write_player(Path(folder), agents=AGENTS, length=10**9, numbers=8)
        rounds: dict[str, list[dict[str, Any]]] = {"direct": [], "host": []}
        if chosen.pure_python is not None:
            rounds |= {"pure_python": [], "pure_python_both": []}
        for _ in range(ROUNDS):
            rounds["direct"].append(_measure("direct", player))
            rounds["host"].append(_measure("host", player))
            if chosen.pure_python is not None:
                rounds["pure_python"].append(_measure("direct", player, chosen.pure_python))
                rounds["pure_python_both"].append(_measure("direct", player, chosen.pure_python, both=True))
    medians = {name: statistics.median(each["steps_per_s"] for each in told) for name, told in rounds.items()}
    for name, rate in medians.items():
        print(json.dumps({"contender": name, "agents": AGENTS, **rounds[name][0], "steps_per_s": round(rate, 1)}))
    print(json.dumps({"host_over_direct": round(medians["host"] / medians["direct"], 3)}))
    if "pure_python" in medians:
        for name in ("pure_python", "pure_python_both"):
            print(json.dumps({f"upb_over_{name}": round(medians["direct"] / medians[name], 2)}))


if __name__ == "__main__":
    main()
