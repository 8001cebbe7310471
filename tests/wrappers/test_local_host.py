"""Hosts that a client started for itself end with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gymnasium.error import NameNotFound

from agentgpt_remote.errors import AuthError, ConnectionLost, HostUnreachable
from agentgpt_remote.wrappers.launcher import EnvLauncher
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.support import is_running, wait_until
from tests.wrappers.odd_envs import CountingEnv

CLIENT = """
import sys
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.remote_env import RemoteEnv
env = RemoteEnv("CartPole-v1")
env.reset()
print(env._sessions.hosts[0].process.pid, flush=True)
sys.stdin.read()
"""


def test_local_host_serves_several_sessions_and_ends() -> None:
    with LocalHost("CartPole-v1") as host:
        with (
            RemoteVectorEnv(url=host.url, token=host.token, num_envs=2) as one,
            RemoteVectorEnv("CartPole-v1", url=host.url, token=host.token, num_envs=3) as other,
        ):
            assert one.reset(seed=0)[0].shape == (2, 4)
            assert other.reset(seed=0)[0].shape == (3, 4)
        with pytest.raises(AuthError):
            RemoteEnv(url=host.url, token="guess")
        assert host.running
        assert host.token not in repr(host)
    assert not host.running
    host.close()


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_token_of_a_local_host_is_in_no_process_listing() -> None:
    with LocalHost("CartPole-v1") as host:
        for name in ("cmdline", "environ"):
            assert host.token.encode() not in Path(f"/proc/{host.pid}/{name}").read_bytes()


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_host_ends_with_its_client_however_it_ends(end: signal.Signals | None) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        host = int(client.stdout.readline())
        assert is_running(host)
        if end is None:
            client.stdin.close()
        else:
            client.send_signal(end)
        client.wait(15)
        wait_until(lambda: not is_running(host))


def test_interrupt_in_the_terminal_leaves_the_host_to_its_client() -> None:
    code = (
        "import os, signal, sys\n"
        "from agentgpt_remote.wrappers.remote_env import RemoteEnv\n"
        "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'interrupted\\n'))\n"  # may come while 'ready' is printed
        "with RemoteEnv('CartPole-v1') as env:\n"
        "    env.reset()\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    env.step(0)\n"
        "    print('stepped', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        os.killpg(client.pid, signal.SIGINT)
        assert client.stdout.readline() == "interrupted\n"
        assert client.communicate("\n", timeout=15)[0] == "stepped\n"


def test_fork_of_a_client_neither_uses_nor_ends_its_session() -> None:
    code = (
        "import os\n"
        "from agentgpt_remote.wrappers.remote_env import RemoteEnv\n"
        "env = RemoteEnv('CartPole-v1')\n"
        "env.reset()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        env.step(0)\n"
        "    except ConnectionError as error:\n"
        "        env.close()\n"
        "        os._exit(3 if 'fork' in str(error) else 4)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "print(len(env.step(0)))\n"
        "env.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["3", "5"]


def test_host_that_was_killed_is_connection_lost() -> None:
    with LocalHost("CartPole-v1") as host:
        env = RemoteEnv(url=host.url, token=host.token, resume_window_s=0.3)
        env.reset()
        os.kill(host.pid, signal.SIGKILL)
        wait_until(lambda: not host.running)
        with pytest.raises(ConnectionLost, match="not back within"):
            env.step(0)
        env.close()


def test_unknown_id_starts_nothing() -> None:
    with pytest.raises(NameNotFound, match="Did you mean"):
        LocalHost("CartPol-v1")
    with pytest.raises(NameNotFound, match="Did you mean"):
        LocalHost("gymnasium:CartPol-v1")


def test_env_launcher_serves_and_closes() -> None:
    with EnvLauncher.launch_on_local_with_ip(CountingEnv, port=0) as launcher:
        assert launcher.url.startswith("ws://127.0.0.1:")
        with RemoteEnv(url=launcher.url) as env:
            assert env.reset()[0][0] == 1.0
    with pytest.raises(HostUnreachable):
        RemoteEnv(url=launcher.url)
    launcher.close()


def test_env_launcher_tells_the_address_that_clients_use() -> None:
    with EnvLauncher.launch_on_local_with_ip("CartPole-v1", "192.0.2.7", port=0) as launcher:
        assert launcher.url.startswith("ws://192.0.2.7:")


def test_env_launcher_needs_a_token_beyond_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTGPT_TOKEN", raising=False)
    with pytest.raises(AuthError, match="without a token"):
        EnvLauncher.launch_on_local_with_ip("CartPole-v1", host="0.0.0.0", port=0)
