"""Training over relays: hosts come, go and stall, the relay is restarted, and every step counts once."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentgpt_remote.errors import ConfigError, HostUnreachable
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.server.relay import serve_relay
from agentgpt_remote.tokens import Keyring, Role
from agentgpt_remote.trainer.evaluation import evaluate_source
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.loop import TrainingResult, train
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.reach.audited import FOLDER_VARIABLE, SOURCE, Account
from tests.reach.processes import SECRET, Command, free_port, start_host, start_relay
from tests.support import wait_until
from tests.trainer.test_hosts import SMALL

Serve = Callable[..., Any]


class Run(threading.Thread):
    """A training run in a thread of its own."""

    def __init__(self, room: str, run_dir: Path, token: str | None = None, **settings: Any) -> None:
        super().__init__(daemon=True)
        host = EnvHost(env_endpoint=room, num_agents=settings.pop("num_agents", None))
        self._hyperparameters = Hyperparameters(env_hosts={"lab": host}, **settings)
        self._run_dir, self._token = run_dir, token
        self.stop = threading.Event()
        self.env_steps = 0
        self.result: TrainingResult | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = train(
                self._hyperparameters,
                run_dir=self._run_dir,
                token=self._token,
                stop_event=self.stop,
                on_progress=lambda progress: setattr(self, "env_steps", progress.env_steps),
            )
        except Exception as error:  # noqa: BLE001 - raised where the run is waited for
            self.error = error

    def finish(self, timeout_s: float) -> TrainingResult:
        """Wait for the end."""
        self.join(timeout_s)
        assert not self.is_alive(), "the run has not ended in time"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Account:
    account = Account(RemoteVectorEnv.step_wait)
    monkeypatch.setattr(RemoteVectorEnv, "step_wait", account.step_wait)
    return account


def _through_trouble(folder: Path, account: Account, every: int, **settings: Any) -> TrainingResult:
    """Train while hosts are killed, added and stalled and the relay is restarted twice, and check the account."""
    steps = folder / "steps"
    steps.mkdir()
    port = free_port()
    room = f"ws://127.0.0.1:{port}/lab"
    keyring = Keyring(SECRET)
    variables = {"AGENTGPT_TOKEN": keyring.make(Role.HOST, "lab"), FOLDER_VARIABLE: str(steps)}
    relay = start_relay(port, AGENTGPT_RELAY_SECRET=SECRET)
    hosts: list[Command] = []

    def add() -> None:
        hosts.append(start_host(room, SOURCE, "--num-envs", "4", "--workers", "0", **variables))

    def restart() -> None:
        nonlocal relay
        relay.kill()
        relay.__exit__()
        relay = start_relay(port, AGENTGPT_RELAY_SECRET=SECRET)

    def stall() -> None:
        hosts[-1].process.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        hosts[-1].process.send_signal(signal.SIGCONT)

    try:
        add()
        add()
        run = Run(room, folder / "run", keyring.make(Role.TRAINER, "lab"), num_agents=16, **settings)
        for trouble in (restart, hosts[0].kill, add, stall, restart, add):
            target = account.total + every
            wait_until(lambda target=target: account.total >= target or not run.is_alive(), 120.0)
            trouble()
        wait_until(lambda: len(account.received) == 16 or not run.is_alive(), 60.0)  # 4 of each of 4 hosts
        result = run.finish(900.0)
        for host in hosts[1:]:
            assert host.process.poll() is None
            assert host.end(signal.SIGINT) == 0
    finally:
        for command in (*hosts, relay):
            command.__exit__()
    account.check(steps)
    assert result.env_steps <= account.total <= result.env_steps + 16
    return result


def test_no_step_is_lost_or_doubled_through_all_kinds_of_trouble(tmp_path: Path, account: Account) -> None:
    result = _through_trouble(tmp_path, account, 400, **SMALL | {"max_steps": 8000})
    assert 7984 <= result.env_steps <= 8000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cartpole_is_solved_through_all_kinds_of_trouble(tmp_path: Path, account: Account) -> None:
    result = _through_trouble(tmp_path, account, 5000, max_steps=60_000, torch_threads=1, use_tensorboard=False)
    with GPTPolicy(result.bundle) as policy:
        assert evaluate_source(policy, "CartPole-v1", episodes=20, seed=1).mean >= 475


def test_host_that_comes_later_is_used(tmp_path: Path, serve_into: Serve) -> None:
    with serve_relay(port=0, block=False) as relay:
        room = f"{relay.url}/lab"
        run = Run(room, tmp_path / "run", **SMALL | {"host_wait_s": 30.0})
        time.sleep(0.5)
        assert run.is_alive()
        first = serve_into(room, "CartPole-v1", num_envs=4)
        wait_until(lambda: run.env_steps > 0)
        second = serve_into(room, "CartPole-v1", num_envs=4)
        wait_until(lambda: _envs_used(relay.url, room) == {first.url: 4, second.url: 4})
        before = run.env_steps
        wait_until(lambda: run.env_steps > before + 1000)
        run.stop.set()
        assert run.finish(60.0).stopped


def _envs_used(relay_url: str, room: str) -> dict[str, int]:
    from agentgpt_remote.wrappers.rooms import Room

    del relay_url
    return {member.url: member.offers["envs"] for member in Room(room, None).members()}


def test_host_that_serves_something_else_is_left_out(
    tmp_path: Path, serve_into: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    with serve_relay(port=0, block=False) as relay:
        room = f"{relay.url}/lab"
        serve_into(room, "CartPole-v1", num_envs=4)
        run = Run(room, tmp_path / "run", **SMALL)
        wait_until(lambda: run.env_steps > 0)
        other = serve_into(room, "Acrobot-v1", num_envs=4)
        wait_until(lambda: f"url={other.url} is left out for good" in caplog.text)
        right = serve_into(room, "CartPole-v1", num_envs=4)
        wait_until(lambda: _envs_used(relay.url, room).get(right.url) == 4)
        run.stop.set()
        run.finish(60.0)


def test_rooms_of_different_spaces_are_refused_by_name(tmp_path: Path, serve_into: Serve) -> None:
    with serve_relay(port=0, block=False) as relay:
        room = f"{relay.url}/lab"
        serve_into(room, "CartPole-v1", num_envs=4)
        serve_into(room, "Acrobot-v1", num_envs=4)
        with pytest.raises(ConfigError, match="space"):
            Run(room, tmp_path / "run", **SMALL).finish(60.0)
        assert not (tmp_path / "run").exists()


def test_room_that_stays_empty_is_told_in_time(tmp_path: Path) -> None:
    with serve_relay(port=0, block=False) as relay:
        run = Run(f"{relay.url}/lab", tmp_path / "run", **SMALL | {"host_wait_s": 0.5})
        with pytest.raises(HostUnreachable, match=r"came to .*/lab within 0\.5 s: .*agentgpt serve SOURCE --connect"):
            run.finish(30.0)


def test_train_listens_for_hosts_that_dial_in(tmp_path: Path) -> None:
    words = ["train", "--listen", "127.0.0.1:0", "--runs-dir", str(tmp_path), "--set", "max_steps=3000", "--json"]
    with Command(*words, "--set", "d_model=32", "--set", "num_heads=2") as trainer:
        room = re.split(r"\s", trainer.wait_for(r"--connect \S+"))[1]
        with start_host(room, "CartPole-v1", "--num-envs", "8") as host:
            trainer.wait_for(r'"env_steps": \d{4}', 120.0)
            assert trainer.process.wait(60) == 0
            assert (tmp_path / "train" / "policy" / "config.json").exists()
            assert host.end(signal.SIGINT) == 0


def test_train_that_listens_ends_by_ctrl_c_before_any_host_came(tmp_path: Path) -> None:
    with Command("train", "--listen", "127.0.0.1:0", "--runs-dir", str(tmp_path)) as trainer:
        trainer.wait_for(r"--connect \S+")
        time.sleep(1.0)
        assert trainer.end(signal.SIGINT) in (1, 130)
        assert "Traceback" not in trainer.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--listen", "0.0.0.0:0"], "without a secret.*--secret-file"),
        (["--listen", "127.0.0.1:0", "CartPole-v1"], "leave out CartPole-v1"),
        (["--listen", "nonsense"], "expected HOST:PORT"),
        (["--listen", "127.0.0.1:0/a b"], "letters, digits"),
        ([], "Name a source"),
        (["CartPole-v1", "--max-agents", "4"], "--set num_envs=4"),
    ],
)
def test_wrong_use_of_listen_is_one_clear_error(words: list[str], told: str, tmp_path: Path) -> None:
    with Command("train", *words, "--runs-dir", str(tmp_path)) as trainer:
        assert trainer.process.wait(60) in (1, 2)
        trainer.drain()
        assert re.search(told, trainer.output), trainer.output
        assert "Traceback" not in trainer.output
        assert not list(tmp_path.iterdir())
