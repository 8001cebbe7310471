"""Many hosts in one process, each with a control connection, sessions and environments of its own.

Started by :mod:`benchmarks.relay`; the payload names the room, how many hosts there are and what each offers.
"""

from __future__ import annotations

import asyncio
import json

from agentgpt_remote.processes import allow_many_connections, read_payload, report_ready
from agentgpt_remote.server.dialling import DialingHost
from agentgpt_remote.server.sessions import HostLimits
from agentgpt_remote.server.sources import resolve_source


async def run(room: str, source: str, hosts: int, num_envs: int) -> None:
    """Dial out as so many hosts, say so once all are in the room, and stay."""
    entered = asyncio.Queue[str]()
    limits = HostLimits(num_envs=num_envs, workers=0)
    offered = resolve_source(source)
    dialling = [
        asyncio.create_task(DialingHost(offered, limits, room, None, on_ready=entered.put_nowait).run())
        for _ in range(hosts)
    ]
    for _ in range(hosts):
        await asyncio.wait_for(entered.get(), 120.0)
    report_ready()
    await asyncio.gather(*dialling)


if __name__ == "__main__":
    allow_many_connections()
    asyncio.run(run(**json.loads(read_payload())))
