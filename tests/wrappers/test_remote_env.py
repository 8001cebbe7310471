"""RemoteEnv's contract beyond trajectories: bad input, failures on the host, rendering, instances."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from agentgpt_remote.errors import (
    AuthError,
    CapacityReached,
    ConfigError,
    ConnectionLost,
    HostUnreachable,
    InvalidAction,
    NotSendable,
    ProtocolError,
    RemoteEnvError,
    RemoteTimeout,
)
from agentgpt_remote.processes import ChildProcess
from agentgpt_remote.server.serve import serve
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.conftest import ServeFunction
from tests.wrappers.odd_envs import (
    CountingEnv,
    FragileEnv,
    ProcessEnv,
    QuittingEnv,
    RaisingEnv,
    SlowEnv,
    UnsendableEnv,
)


def test_step_before_reset_raises(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here("CartPole-v1").url) as env:
        with pytest.raises(ResetNeeded):
            env.step(0)
        with pytest.raises(ResetNeeded):
            env.render()
        assert env.reset(seed=0)[0].shape == (4,)


def test_everything_after_close_raises(serve_here: ServeFunction) -> None:
    env = RemoteEnv(url=serve_here("CartPole-v1").url)
    env.close()
    env.close()
    for use in (env.reset, lambda: env.step(0), env.render, lambda: env.call("x")):
        with pytest.raises(ClosedEnvironmentError, match="is closed"):
            use()


@pytest.mark.parametrize("action", [7, -1, np.int64(5)])
def test_action_outside_the_space_is_named_and_the_session_goes_on(action: Any, serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here("CartPole-v1").url) as env:
        env.reset(seed=0)
        with pytest.raises(
            InvalidAction, match=rf"{int(action)}.* is outside the action space Discrete\(2\)"
        ) as caught:
            env.step(action)
        assert isinstance(caught.value.__cause__, RemoteEnvError)
        assert env.step(1)[2] is False


@pytest.mark.parametrize("action", [np.array([0, 1]), "left", None, 1.5, [1], np.zeros((2, 2), np.float32)])
def test_action_of_the_wrong_kind_is_a_clear_error_and_the_session_goes_on(
    action: Any, serve_here: ServeFunction
) -> None:
    url = serve_here("CartPole-v1").url
    with RemoteEnv(url=url) as env, gym.make("CartPole-v1") as twin:
        assert np.array_equal(env.reset(seed=0)[0], twin.reset(seed=0)[0])
        with pytest.raises(InvalidAction, match="outside the action space"):
            env.step(action)
        assert np.array_equal(env.step(1)[0], twin.step(1)[0])


def test_action_that_cannot_be_sent_is_refused_before_it_is_sent(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here("CartPole-v1").url) as env:
        env.reset(seed=0)
        with pytest.raises(InvalidAction, match="can't be sent"):
            env.step(object())
        assert env.step(1)[2] is False


def test_action_outside_the_space_that_the_env_accepts_is_none_of_our_business(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here("Pendulum-v1").url) as env, gym.make("Pendulum-v1") as twin:
        env.reset(seed=0)
        twin.reset(seed=0)
        assert np.array_equal(env.step(np.array([9.0]))[0], twin.step(np.array([9.0]))[0])


def test_env_that_raises_in_step_brings_its_traceback_and_the_session_goes_on(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here(FragileEnv).url) as env:
        env.reset()
        with pytest.raises(RemoteEnvError, match="the motor burnt out") as caught:
            env.step(2)
        assert caught.value.remote_type == "RuntimeError"
        assert "odd_envs.py" in caught.value.remote_traceback
        assert env.step(1)[0][1] == 1.0


def test_render_modes_go_through_the_wire(serve_here: ServeFunction) -> None:
    url = serve_here(CountingEnv).url
    with RemoteEnv(url=url, render_mode="rgb_array") as env:
        env.reset()
        env.step(0)
        frame = env.render()
        assert frame.dtype == np.uint8
        assert frame.shape == (4, 6, 3)
        assert (frame == 1).all()
        assert env.metadata == {"render_modes": ["rgb_array", "ansi"], "render_fps": 7}
    with RemoteEnv(url=url, render_mode="ansi") as env:
        env.reset()
        assert env.render() == "step 0"
    assert RemoteEnv.metadata["render_modes"] == ["rgb_array", "ansi"]


def test_calls_and_attributes_reach_the_host(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here(CountingEnv).url) as env:
        env.reset()
        env.step(0)
        assert env.call("add", 2, times=3) == 7
        env.set_attr("length", 1)
        assert env.get_attr("length") == 1
        for name in ("__class__", "_observe"):
            with pytest.raises(ConfigError, match="public names"):
                env.call(name)
        with pytest.raises(RemoteEnvError, match="nothing_of_that_name"):
            env.get_attr("nothing_of_that_name")


def test_info_that_cannot_be_sent_is_left_out_with_one_warning(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here(UnsendableEnv).url) as env:
        env.reset()
        with pytest.warns(UserWarning, match="info\\['simulator'\\] is left out"):
            assert env.step(0)[4] == {"count": 1}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert env.step(0)[4] == {"count": 2}


def test_options_that_cannot_be_sent_are_refused(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here(CountingEnv).url) as env:
        with pytest.raises(NotSendable, match="'thing'"):
            env.reset(options={"thing": object()})
        assert env.reset(options={"level": 3})[1]["options"] == {"level": 3}


def test_reset_seeds_the_generator_here_too(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here("CartPole-v1").url) as env:
        env.reset(seed=12)
        assert env.np_random_seed == 12


def test_nothing_listening_fails_within_the_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(HostUnreachable, match="agentgpt serve"):
            RemoteEnv(url=url, connect_timeout_s=0.5)
        assert time.monotonic() - start < 5.0
    with pytest.raises(HostUnreachable, match="nothing listens"):
        RemoteEnv(url=url)


def test_wrong_token_is_an_auth_error(serve_here: ServeFunction) -> None:
    with pytest.raises(AuthError, match="token is wrong"):
        RemoteEnv(url=serve_here("CartPole-v1", token="right").url, token="left")


def test_slow_env_is_a_timeout_that_names_the_option(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here(SlowEnv).url, request_timeout_s=0.1, seconds=0.4) as env:
        env.reset()
        with pytest.raises(RemoteTimeout, match="request_timeout_s"):
            env.step(0)
        deadline = time.monotonic() + 10.0
        while True:  # the late reply is not taken for that of the next request
            try:
                observation = env.reset()[0]
                break
            except RemoteTimeout:
                assert time.monotonic() < deadline
        assert observation[1] == 0.0


def test_reply_over_the_frame_limit_is_an_error_and_the_session_goes_on(serve_here: ServeFunction) -> None:
    url = serve_here(CountingEnv, max_frame_bytes=2000).url
    with RemoteEnv(url=url) as env:
        with pytest.raises(ProtocolError, match="frame limit of 2000"):
            env.reset(options={"blob": b"x" * 1940})
        with pytest.raises(ProtocolError, match=r"request of .* bytes"):
            env.reset(options={"blob": b"x" * 5000})
        assert env.reset()[0][1] == 0.0


def test_instance_is_served_from_this_process_and_closed_with_it() -> None:
    class Closing(ProcessEnv):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    mine = Closing()
    before = set(threading.enumerate())
    with RemoteEnv(mine) as env:
        assert env.reset()[0][0] == 1.0
        assert mine.episode == 1
        assert env.call("process_id") == os.getpid()
        with pytest.raises(CapacityReached, match="one session at a time"):
            RemoteEnv(url=env.url, token=env._transport._token)
    assert mine.closed == 1
    assert set(threading.enumerate()) <= before


def test_callable_is_served_by_another_process() -> None:
    with RemoteEnv(lambda: ProcessEnv()) as env:
        there = env.call("process_id")
        assert there != os.getpid()
        os.kill(there, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(there, 0)


def test_env_that_is_forgotten_ends_its_host() -> None:
    env = RemoteEnv(lambda: ProcessEnv())
    there = env.call("process_id")
    del env
    with pytest.raises(ProcessLookupError):
        os.kill(there, 0)


def test_neither_source_nor_url_is_an_error() -> None:
    with pytest.raises(ConfigError, match="what environment"):
        RemoteEnv()


def test_remote_env_spec_makes_the_same_environment_again() -> None:
    with serve("CartPole-v1", port=0, block=False) as server:
        elsewhere = RemoteEnv(url=server.url, render_mode="rgb_array")
        for env in (elsewhere, RemoteEnv("CartPole-v1", sutton_barto_reward=True)):
            assert env.spec is not None
            assert env.spec.id == "agentgpt/CartPole-v1"
            again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
            assert again.render_mode == env.render_mode
            for one in (env, again):
                one.reset(seed=0)
            assert env.step(0)[1] == again.step(0)[1]
            again.close()
            env.close()
    with RemoteEnv(lambda: gym.make("CartPole-v1")) as unnamed:
        assert unnamed.spec is None


@pytest.mark.parametrize("at", ["constructor", "step"])
@pytest.mark.parametrize("what", ["interrupt", "exit", "cancelled", "stop", "surrogate"])
def test_whatever_an_env_raises_reaches_the_client_and_the_host_lives_on(
    at: str, what: str, serve_here: ServeFunction
) -> None:
    server = serve_here(RaisingEnv)

    def play() -> None:
        with RemoteEnv(url=server.url, at=at, what=what, request_timeout_s=10.0) as env:
            env.reset()
            env.step(0)

    with pytest.raises(RemoteEnvError, match="by the env") as caught:
        play()
    assert "in _raise" in caught.value.remote_traceback
    with RemoteEnv(url=server.url, at="", what="", request_timeout_s=10.0) as env:
        env.reset()
        assert env.step(0)[1] == 0.1


@pytest.mark.parametrize("delay_s", [0.0, 0.3])
def test_own_host_that_crashed_is_told_at_once_with_its_last_words(
    delay_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ChildProcess._write_log

    def write_late(child: ChildProcess, output: bytes) -> None:
        time.sleep(delay_s)  # as on a machine where many wait for a processor
        write(child, output)

    monkeypatch.setattr(ChildProcess, "_write_log", write_late)
    with RemoteEnv(QuittingEnv) as env:
        env.reset()
        before = time.monotonic()
        with pytest.raises(ConnectionLost, match=r"(?s)process ended \(exit code 7\).*about to crash"):
            env.step(0)
        assert time.monotonic() - before < 10.0


@pytest.mark.parametrize("name", ["connect_timeout_s", "request_timeout_s", "resume_window_s"])
@pytest.mark.parametrize("seconds", [-1, "3", float("nan"), True])
def test_timeout_out_of_range_is_refused_by_name(name: str, seconds: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.* is out of range: expected seconds"):
        RemoteEnv("CartPole-v1", **{name: seconds})


@pytest.mark.parametrize("url", [8000, ["ws://a:1"], "ws://[::1", "wss://", "", "ws://a:99999"])
def test_malformed_url_is_refused_by_name(url: Any) -> None:
    with pytest.raises(ConfigError, match="can't connect to"):
        RemoteEnv(url=url)


def test_source_may_carry_the_prefix_of_remote_ids() -> None:
    with RemoteEnv("agentgpt/CartPole-v1") as env:
        assert env.spec is not None
        assert env.spec.id == "agentgpt/CartPole-v1"
        assert env.reset(seed=0)[0].shape == (4,)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_copy_is_refused_and_says_what_to_copy(copied: Callable[[Any], Any], serve_here: ServeFunction) -> None:
    url = serve_here("CartPole-v1").url
    with RemoteEnv(url=url) as env, RemoteVectorEnv(url=url) as envs:
        for remote in (env, envs):
            with pytest.raises(TypeError, match=f"a {type(remote).__name__} can't be pickled or deeply copied.*spec"):
                copied(remote)
        assert env.reset(seed=1)[0].shape == (4,)


def test_argument_that_the_constructor_does_not_take_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):
        gym.make("agentgpt/CartPole-v1", frameskip=1)


def test_attribute_that_can_not_be_sent_is_not_there(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here("CartPole-v1").url) as env:
        assert not hasattr(env, "env")  # of the wrappers on the host
