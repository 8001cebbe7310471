"""Seeing the distance through a relay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentgpt_remote import RemoteVectorEnv
from agentgpt_remote.diagnostics import check_distance
from agentgpt_remote.tokens import Role
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.lane_counts import choose_lanes
from tests.reach.conftest import Guarded


def test_check_of_a_room_counts_all_its_hosts(guarded: Guarded, serve_into: Callable[..., Any]) -> None:
    serve_into(guarded.room, num_envs=36, token=guarded.token(Role.HOST))
    token = guarded.token(Role.TRAINER)
    told = {check.name: check.detail for check in check_distance(guarded.room, token)}
    assert told["distance"].startswith("RTT median ")
    assert told["in flight"] == "0 envs of 0 other sessions there now, 100 of 100 free"
    assert " = 100 envs / RTT" in told["ceiling"]


def test_auto_groups_and_lanes_go_through_a_relay(guarded: Guarded) -> None:
    token = guarded.token(Role.TRAINER)
    with RemoteVectorEnv(url=guarded.room, token=token, num_envs=4, groups="auto") as envs:
        assert 4 % envs.groups == 0
        envs.reset(seed=0)
    room = Hyperparameters(env_hosts={"room": EnvHost(env_endpoint=guarded.room)})
    assert choose_lanes(room, None, token) == 1, "it is near"
