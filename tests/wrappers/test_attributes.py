"""What an environment has beyond Gymnasium's own interface, reached from the client as if it were here."""

from __future__ import annotations

import copy

import gymnasium as gym
import pytest

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.conftest import ServeFunction
from tests.wrappers.odd_envs import CountingEnv


@pytest.mark.parametrize("workers", [0, 1])
def test_attributes_and_methods_of_the_env_on_its_host(workers: int, serve_here: ServeFunction) -> None:
    url = serve_here(CountingEnv, workers=workers).url
    with gym.make("agentgpt/CountingEnv", url=url, disable_env_checker=True) as env:
        env.reset()
        env.step(0)
        assert env.unwrapped.length == 5
        assert env.unwrapped.add(10, times=2) == 21
        assert env.get_wrapper_attr("length") == 5
        assert env.get_wrapper_attr("add")(3) == 4
        assert env.has_wrapper_attr("count")
        assert not env.has_wrapper_attr("no_such_thing")
        assert env.set_wrapper_attr("length", 7)
        assert env.unwrapped.get_attr("length") == 7
        assert not env.unwrapped.set_wrapper_attr("no_such_thing", 1, force=False)
        assert env.unwrapped.set_wrapper_attr("note", "mine")
        assert env.unwrapped.get_attr("note") == "mine"
        with pytest.raises(AttributeError, match=r"has no attribute 'no_such_thing'"):
            env.unwrapped.no_such_thing  # noqa: B018 - raises
        with pytest.raises(AttributeError, match="_private"):
            env.unwrapped._private  # noqa: B018 - raises


def test_own_attributes_come_first_and_a_closed_env_asks_nobody(serve_here: ServeFunction) -> None:
    url = serve_here(CountingEnv).url
    env = RemoteEnv(url=url)
    assert env.get_wrapper_attr("url") == url
    assert env.set_wrapper_attr("render_mode", "ansi")
    assert env.render_mode == "ansi"
    assert env.get_attr("render_mode") is None
    env.close()
    with pytest.raises(AttributeError, match="length"):
        env.length  # noqa: B018 - raises
    with pytest.raises(AttributeError):
        copy.copy(env).length  # noqa: B018 - raises


@pytest.mark.parametrize("workers", [0, 1])
def test_private_names_are_closed_by_every_way(workers: int, serve_here: ServeFunction) -> None:
    url = serve_here(CountingEnv, workers=workers).url
    with RemoteEnv(url=url) as env, RemoteVectorEnv(url=url, num_envs=2) as envs:
        for way in ("get_wrapper_attr", "has_wrapper_attr", "set_wrapper_attr", "call", "get_attr"):
            for one in (env, envs):
                with pytest.raises(ConfigError, match="can't reach '_np_random'"):
                    one.call(way, "_np_random", 1)
        with pytest.raises(ConfigError, match="can't reach '_np_random'"):
            env.get_attr("_np_random")
