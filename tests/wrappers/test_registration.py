"""``agentgpt/<id>`` in gymnasium.make, make_vec and spec, and remote_spec."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import NameNotFound
from gymnasium.vector import AutoresetMode

import agentgpt_remote
from agentgpt_remote.errors import AuthError, ConfigError, NotSendable, RemoteEnvError, UnsupportedSpace
from agentgpt_remote.registration import install, remote_spec
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.conftest import ServeFunction
from tests.wrappers.odd_envs import CountingEnv, FragileEnv, OddSpaceEnv, OwnVectorEnv

install()
TOKEN = "sesame-open-up"


@pytest.fixture
def registered() -> Iterator[str]:
    """An id that only this process knows, with a lambda as its entry point."""
    env_id = "Lambda-v3"
    gym.register(env_id, entry_point=lambda **kwargs: CountingEnv(**kwargs), max_episode_steps=4, kwargs={"length": 9})
    yield env_id
    del gym.registry[env_id]


def test_install_is_idempotent_and_registers_nothing() -> None:
    before = gym.envs.registration._find_spec
    install()
    assert gym.envs.registration._find_spec is before
    assert not [env_id for env_id in gym.registry if env_id.startswith("agentgpt/")]
    assert gym.make("CartPole-v1").spec is not None


def test_make_serves_ids_of_this_process_alone_with_their_time_limit(registered: str) -> None:
    with gym.make(f"agentgpt/{registered}") as env:
        assert isinstance(env.unwrapped, RemoteEnv)
        assert env.unwrapped.url.startswith("ws://127.0.0.1:")
        env.reset()
        assert [env.step(0)[2:4] for _ in range(4)] == [(False, False)] * 3 + [(False, True)]
        assert env.spec is not None
        assert env.spec.max_episode_steps is None


def test_make_vec_serves_ids_of_this_process_alone(registered: str) -> None:
    envs = gym.make_vec(f"agentgpt/{registered}", num_envs=2, autoreset_mode=AutoresetMode.SAME_STEP, length=2)
    assert isinstance(envs, RemoteVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    envs.reset()
    envs.step([0, 0])
    assert "final_obs" in envs.step([0, 0])[4]
    envs.close()


def test_class_of_the_main_script_is_served() -> None:
    code = (
        "import gymnasium as gym, agentgpt_remote\n"
        "from agentgpt_remote.registration import install; install()\n"
        "class Mine(gym.Env):\n"
        "    observation_space = action_space = gym.spaces.Discrete(3)\n"
        "    def reset(self, *, seed=None, options=None): return 2, {}\n"
        "    def step(self, action): return action, 1.5, True, False, {}\n"
        "gym.register('Mine-v0', entry_point=Mine)\n"
        "with gym.make('agentgpt/Mine-v0') as env: print(env.reset(), env.step(1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "(2, {}) (1, 1.5, True, False, {})"


@pytest.mark.parametrize("env_id", ["agentgpt/CartPole-v1", "agentgpt_remote:agentgpt/CartPole-v1"])
def test_spec_of_a_remote_id(env_id: str) -> None:
    for spec in (gym.spec("agentgpt/CartPole-v1"), gym.envs.registration._find_spec(env_id)):
        assert spec.id == "agentgpt/CartPole-v1"
        assert spec.reward_threshold == 475.0
        assert spec.max_episode_steps is None


def test_id_with_a_namespace_is_mapped() -> None:
    spec = gym.spec("agentgpt/ALE/Pong-v5")
    assert spec.id == "agentgpt/ALE.Pong-v5"
    assert spec.kwargs["source"] == "ALE/Pong-v5"


def test_remote_spec_pickles_and_survives_json(serve_here: ServeFunction) -> None:
    spec = remote_spec("CartPole-v1", url=serve_here("CartPole-v1").url)
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301
    assert EnvSpec.from_json(spec.to_json()) == spec
    with gym.make(EnvSpec.from_json(spec.to_json())) as env:
        assert env.reset(seed=1)[0].shape == (4,)


def test_unknown_id_names_the_closest() -> None:
    with pytest.raises(NameNotFound, match="Did you mean: `CartPole`"):
        gym.make("agentgpt/CartPol-v1")


def test_id_that_only_the_host_knows(serve_here: ServeFunction) -> None:
    gym.register("HostOnly-v0", entry_point=CountingEnv)
    url = serve_here("HostOnly-v0").url
    del gym.registry["HostOnly-v0"]
    with gym.make("agentgpt/HostOnly-v0", url=url) as env:
        assert env.reset()[0][0] == 1.0
    with pytest.raises(NameNotFound, match=r"which serves `HostOnly-v0`\. Did you mean: `HostOnly-v0`"):
        gym.make("agentgpt/HostOnli-v0", url=url)


def test_constructor_arguments_reach_the_host_and_its_errors_come_back(serve_here: ServeFunction) -> None:
    url = serve_here(FragileEnv).url
    with RemoteEnv(url=url, length=2) as env:
        assert env.get_attr("length") == 2
    with pytest.raises(RemoteEnvError, match=r"(?s)ZeroDivisionError.*no licence.*odd_envs\.py") as broken:
        RemoteEnv(url=url, broken=True)
    assert broken.value.remote_type == "ZeroDivisionError"
    assert "sessions.py" not in broken.value.remote_traceback


def test_source_with_its_own_vector_env_is_used() -> None:
    with RemoteVectorEnv(OwnVectorEnv, 3) as envs:
        envs.reset()
        step = envs.step(envs.action_space.sample())
    assert step[1].dtype == "float32"
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_module_factory_as_a_source() -> None:
    with RemoteEnv("tests.wrappers.odd_envs:make_counting", length=3) as env:
        assert env.get_attr("length") == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tests.wrappers.odd_envs:make_countin", "Did you mean: `make_counting`"),
        ("no_such_module:Env-v0", "No module named 'no_such_module'"),
        ("tests.wrappers.odd_envs:not_an_env", "made a str"),
        (OwnVectorEnv, "use RemoteVectorEnv"),
        (3, "int"),
    ],
)
def test_source_that_cannot_be_served(source: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteEnv(source)


def test_factory_that_cannot_leave_this_process_says_so() -> None:
    import threading

    lock = threading.Lock()
    with pytest.raises(NotSendable, match="module:factory"):
        RemoteEnv(lambda: CountingEnv(lock=lock))


def test_space_that_cannot_be_sent_is_named() -> None:
    with pytest.raises(UnsupportedSpace, match=r'observation\["name"\] is a .*Text'):
        RemoteEnv(OddSpaceEnv)


def _make_all_ways(url: str) -> Iterator[str]:
    """Yield every text of an environment where a token could show."""
    env = gym.make("agentgpt/CartPole-v1", url=url, token=TOKEN)
    envs = gym.make_vec("agentgpt/CartPole-v1", num_envs=2, url=url, token=TOKEN)
    for made in (env, env.unwrapped, envs):
        assert made.spec is not None
        yield from (repr(made), str(made.spec), str(made.spec.to_json()))
    yield str(vars(env.unwrapped)) + str(vars(envs)) + repr(env.unwrapped._transport)  # type: ignore[attr-defined]
    env.close()
    envs.close()


def test_token_shows_nowhere(serve_here: ServeFunction, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    url = serve_here("CartPole-v1", token=TOKEN).url
    assert [text for text in _make_all_ways(url) if TOKEN in text] == []
    assert TOKEN not in caplog.text
    with pytest.raises(ConfigError, match="must not hold a token"):
        remote_spec("CartPole-v1", token=TOKEN)


def test_token_shows_in_no_error(serve_here: ServeFunction) -> None:
    url = serve_here("CartPole-v1", token=TOKEN).url
    with pytest.raises(NotSendable) as unsendable:
        gym.make("agentgpt/CartPole-v1", url=url, token=TOKEN, thing=object())
    odd = serve_here(OddSpaceEnv, token=TOKEN).url
    with pytest.raises(UnsupportedSpace) as unsupported:
        gym.make("agentgpt/Odd-v0", url=odd, token=TOKEN, source=None)
    for error in (unsendable.value, unsupported.value):
        assert TOKEN not in str(error) + repr(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


def test_token_of_the_environment_variable_is_used(serve_here: ServeFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve_here("CartPole-v1", token=TOKEN).url
    with pytest.raises(AuthError, match="token is required"):
        RemoteEnv(url=url)
    monkeypatch.setenv("AGENTGPT_TOKEN", TOKEN)
    with RemoteEnv(url=url) as env:
        assert env.url == url


def test_human_mode_is_rendered_here(serve_here: ServeFunction) -> None:
    url = serve_here("CartPole-v1").url
    with pytest.warns(UserWarning, match="HumanRendering"):
        env = gym.make("agentgpt/CartPole-v1", url=url, render_mode="human")
    assert isinstance(env, gym.wrappers.HumanRendering)
    assert env.unwrapped.render_mode == "rgb_array"
    env.close()
    with pytest.raises(ConfigError, match="render_mode='human'"):
        RemoteEnv(url=url, render_mode="human")
    assert agentgpt_remote.__version__


def test_id_of_a_remote_spec_makes_its_environment_again(serve_here: ServeFunction) -> None:
    gym.register("agentgpt-test/Dotted-v2", CountingEnv)
    try:
        server = serve_here("agentgpt-test/Dotted-v2")
        remote_id = remote_spec("agentgpt-test/Dotted-v2").id
        assert remote_id == "agentgpt/agentgpt-test.Dotted-v2"
        for source in (remote_id, "agentgpt/agentgpt-test/Dotted-v2"):
            with gym.make(source, url=server.url) as env:
                assert env.spec is not None
                assert env.spec.id == remote_id
    finally:
        del gym.registry["agentgpt-test/Dotted-v2"]
    with pytest.raises(NameNotFound, match="doesn't exist on this host"):
        gym.make("agentgpt/agentgpt-test.Other-v2", url=server.url)
    with gym.make(remote_id, url=server.url) as env:  # an id that only the host knows now
        assert env.reset()[0].shape == (3,)
