"""A Unity player made of Python: it speaks the real protocol over gRPC, and fails on command.

``write_player`` makes a program of it, with the ending of a Linux build, so that it is started like one. What the scene
is stands in its settings; faults come as raw bytes through a side channel, such as ``b"fault 2"``:

1 ends with exit code 3, 2 hangs, 3 ends by a signal, 4 hangs up and ends, 5 leaves a child process behind and ends, 6
sends an image of a wrong layout, 7 lets another behaviour appear, 8 kills an agent for good, 9 has nobody decide for 3
steps.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = uuid.UUID("534c891e-810f-11ea-a9d0-822485860400")
ENGINE = uuid.UUID("e951342c-4f7e-11ea-b238-784f4387d1f7")
STATS = uuid.UUID("a1d8f7b7-cec8-50f9-b78b-d3e165a78520")
RAW = uuid.UUID("621f0a70-4f87-11ea-a6bf-784f4387d1f7")
_SCRIPT = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.unity.stand_in import main
main({settings!r})
"""


def write_player(folder: Path, name: str = "player", **settings: Any) -> str:
    """Write a player's program and return its path; ``settings`` are the fields of :class:`Settings`."""
    Settings(**settings)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.x86_64"
    path.write_text(_SCRIPT.format(python=sys.executable, root=str(ROOT), settings=json.dumps(settings)))
    path.chmod(0o755)
    return str(path)


@dataclass
class Settings:
    """What a player is like.

    Attributes:
        agents: how many agents of each behaviour.
        behaviors: names.
        continuous: numbers of an action.
        branches: sizes of an action's branches.
        observations: of ``vector``, ``image`` and ``grey``, in this order.
        image_layout: ``last`` (height, width, channels) or ``first``.
        tell_layout: whether images come with the properties of their axes.
        compressed: whether images are PNG.
        size: height of images; they are 4 pixels wider.
        periods: decision periods, dealt out to the agents.
        length: steps of an episode until it is interrupted.
        death: chance of dying at a step.
        respawn: ``new`` (under a new id, after ``delay`` steps) or ``same`` (at once, under the same id).
        delay: steps until a new one appears.
        masks: whether some branches are masked.
        groups: whether agents have groups and group rewards.
        task: ``echo`` (an action must tell what the agent saw) or ``balance``.
        api: the communicator version that it tells.
        connects: whether it connects at all.
        crash: chance of ending at a step.
        hang: chance of hanging at a step.
        late: a behaviour that appears after so many steps; 0 for none.
        numbers: how many numbers a vector holds, at least 4.
    """

    agents: int = 3
    behaviors: tuple[str, ...] = ("Walker?team=0",)
    continuous: int = 2
    branches: tuple[int, ...] = ()
    observations: tuple[str, ...] = ("vector",)
    image_layout: str = "last"
    tell_layout: bool = True
    compressed: bool = True
    size: int = 12
    periods: tuple[int, ...] = (1,)
    length: int = 20
    death: float = 0.0
    respawn: str = "new"
    delay: int = 2
    masks: bool = False
    groups: bool = False
    task: str = "echo"
    api: str = "1.5.0"
    connects: bool = True
    crash: float = 0.0
    hang: float = 0.0
    late: int = 0
    numbers: int = 4


@dataclass
class Agent:
    """One agent: its number, and what it was last told and asked."""

    number: int
    behavior: str
    period: int
    group: int
    age: int = 0
    wakes: int = 0
    alive: bool = True
    token: float = 0.0
    asked: bool = False
    reward: float = 0.0
    position: float = 0.0
    speed: float = 0.0
    force: float = 0.0
    mask: list[bool] = field(default_factory=list)


class Player:
    """The scene, and the protocol around it."""

    def __init__(self, settings: Settings, seed: int) -> None:
        import numpy as np

        self.settings, self.random = settings, random.Random(seed)
        self._np = np
        self._next = 0
        self.step_number = 0
        self.agents: list[Agent] = []
        self.behaviors = list(settings.behaviors)
        self.told: set[str] = set()
        self.asked: dict[str, list[Agent]] = {}
        self.parameters: dict[str, float] = {}
        self.messages = b""
        self.wrong = self.fault = 0
        self.quiet = 0
        self.bad_image = False

    def new_agent(self, behavior: str, index: int) -> Agent:
        settings = self.settings
        self._next += 1
        period = settings.periods[index % len(settings.periods)]
        group = 1 + index % 2 if settings.groups else 0
        agent = Agent(self._next - 1, behavior, period, group)
        self.begin(agent)
        return agent

    def begin(self, agent: Agent) -> None:
        agent.age, agent.reward, agent.force = 0, 0.0, 0.0
        agent.position, agent.speed = self.random.uniform(-0.3, 0.3), 0.0

    def reset(self) -> dict[str, list[Any]]:
        """Begin anew: everyone gets a new episode under its own id."""
        ended: dict[str, list[Any]] = {}
        if not self.agents:
            for behavior in self.behaviors:
                self.agents += (self.new_agent(behavior, index) for index in range(self.settings.agents))
        for agent in self.agents:
            agent.alive, agent.asked = True, False
            self.begin(agent)
        return self.ask(ended, everyone=True)

    def step(self, actions: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Take the actions, let time pass, and return what agents have to tell."""
        for behavior, asked in self.asked.items():
            given = actions.get(behavior, [])
            assert len(given) == len(asked), f"{len(given)} actions for {len(asked)} agents of {behavior}"
            for agent, action in zip(asked, given, strict=True):
                self.act(agent, action)
        self.step_number += 1
        settings = self.settings
        if settings.late and self.step_number == settings.late:
            self.appear("Late?team=0")
        ended: dict[str, list[Any]] = {}
        for index, agent in enumerate(self.agents):
            if not agent.alive:
                if agent.wakes == self.step_number:
                    self.agents[index] = self.new_agent(agent.behavior, index)
                continue
            self.move(agent)
            agent.age += 1
            died = self.random.random() < settings.death or abs(agent.position) > 1
            over = agent.age >= settings.length
            if died or over:
                ended.setdefault(agent.behavior, []).append(self.info(agent, done=True, interrupted=not died))
                self.respawn(agent)
        return self.ask(ended)

    def appear(self, behavior: str) -> None:
        if behavior not in self.behaviors:
            self.behaviors.append(behavior)
            self.agents.append(self.new_agent(behavior, 0))

    def respawn(self, agent: Agent) -> None:
        agent.asked = False
        if self.settings.respawn == "same":
            self.begin(agent)
        else:
            agent.alive, agent.wakes = False, self.step_number + self.settings.delay

    def move(self, agent: Agent) -> None:
        if self.settings.task != "balance":
            return
        agent.speed += 0.1 * (agent.position + 2 * agent.force)
        agent.position += 0.1 * agent.speed
        agent.reward += 1.0

    def act(self, agent: Agent, action: Any) -> None:
        """Take an action; of the task ``echo`` it must tell what this very agent saw."""
        settings = self.settings
        if settings.task == "balance":
            agent.force = max(-1.0, min(1.0, action.continuous_actions[0])) if settings.continuous else 0.0
            return
        right = True
        if settings.continuous:
            right = abs(action.continuous_actions[0] - agent.token) < 1e-6
        for branch, size in enumerate(settings.branches):
            chosen = action.discrete_actions[branch]
            right = right and chosen == int((agent.token + 1) / 2 * size * 0.999)
        if not right:
            self.wrong += 1
            print(f"agent {agent.number} got the action of another", flush=True)
        agent.reward += 1.0 if right else -1000.0

    def ask(self, told: dict[str, list[Any]], everyone: bool = False) -> dict[str, list[Any]]:
        """Add the agents that need a decision to those that have ended."""
        self.asked = {behavior: [] for behavior in self.behaviors}
        if self.quiet:
            self.quiet -= 1
            return told
        for agent in self.agents:
            if agent.alive and (everyone or agent.age % agent.period == 0):
                told.setdefault(agent.behavior, []).append(self.info(agent))
                self.asked[agent.behavior].append(agent)
        return told

    def info(self, agent: Agent, *, done: bool = False, interrupted: bool = False) -> Any:
        from mlagents_envs.communicator_objects.agent_info_pb2 import AgentInfoProto

        info = AgentInfoProto(id=agent.number, reward=agent.reward, done=done, max_step_reached=interrupted)
        agent.reward = 0.0
        agent.token = self.random.uniform(-1, 1)
        agent.token = float(self._np.float32(agent.token))
        if agent.group:
            info.group_id, info.group_reward = agent.group, 0.5 * agent.group
        for name in self.settings.observations:
            getattr(self, f"add_{name}")(info, agent)
        if self.settings.masks and self.settings.branches and not done:
            agent.mask = [False] * sum(self.settings.branches)
            start = 0
            for size in self.settings.branches:
                wanted = int((agent.token + 1) / 2 * size * 0.999)
                agent.mask[start + (wanted + 1) % size] = True
                start += size
            info.action_mask.extend(agent.mask)
        return info

    def add_vector(self, info: Any, agent: Agent) -> None:
        numbers = [agent.token, agent.position, agent.speed, float(agent.number)]
        if self.settings.task == "balance":
            numbers = [agent.position, agent.speed, agent.position, agent.speed]
        numbers += [0.0] * (self.settings.numbers - 4)
        obs = info.observations.add(name="vector", shape=[len(numbers)], dimension_properties=[1])
        obs.float_data.data.extend(numbers)

    def add_image(self, info: Any, agent: Agent) -> None:
        self._picture(info, agent, 3, "camera")

    def add_grey(self, info: Any, agent: Agent) -> None:
        self._picture(info, agent, 1, "depth")

    def _picture(self, info: Any, agent: Agent, channels: int, name: str) -> None:
        from PIL import Image

        np, settings = self._np, self.settings
        height, width = settings.size, settings.size + 4
        pixels = picture(agent.number, height, width, channels)
        last = settings.image_layout == "last"
        shape = (height, width, channels) if last else (channels, height, width)
        obs = info.observations.add(name=name, shape=shape)
        if settings.tell_layout:
            obs.dimension_properties.extend([2, 2, 1] if last else [1, 2, 2])
        if not settings.compressed:
            values = pixels if last else pixels.transpose(2, 0, 1)
            obs.float_data.data.extend((values.astype(np.float32) / 255).ravel().tolist())
            return
        if self.bad_image:
            pixels = pixels[: height // 2]
        obs.compression_type = 1
        data = io.BytesIO()
        Image.fromarray(np.repeat(pixels, 3, axis=2) if channels == 1 else pixels).save(data, "PNG")
        obs.compressed_data = data.getvalue()

    def listen(self, data: bytes) -> None:
        """Take what came through side channels."""
        from mlagents_envs.side_channel import IncomingMessage

        at = 0
        while at < len(data):
            channel, size = uuid.UUID(bytes_le=data[at : at + 16]), int.from_bytes(data[at + 16 : at + 20], "little")
            message = IncomingMessage(data[at + 20 : at + 20 + size])
            at += 20 + size
            if channel == PARAMETERS:
                key, kind = message.read_string(), message.read_int32()
                assert kind == 0
                self.parameters[key] = message.read_float32()
                self.tell_stat(f"parameter/{key}", self.parameters[key])
            elif channel == ENGINE:
                kind = message.read_int32()
                value = message.read_float32() if kind == 2 else float(message.read_int32())
                self.tell_stat(f"engine/{kind}", value)
            elif channel == RAW:
                data_sent = message.get_raw_bytes()
                if data_sent.startswith(b"fault "):
                    self.fault = int(data_sent[6:])
                else:
                    self.send(RAW, data_sent[::-1])

    def tell_stat(self, name: str, value: float) -> None:
        from mlagents_envs.side_channel.outgoing_message import OutgoingMessage

        message = OutgoingMessage()
        message.write_string(name)
        message.write_float32(value)
        message.write_int32(1)
        self.send(STATS, bytes(message.buffer))

    def send(self, channel: uuid.UUID, data: bytes) -> None:
        self.messages += channel.bytes_le + len(data).to_bytes(4, "little") + data

    def fail(self) -> None:
        """Do what was commanded, or what chance asks for."""
        fault, self.fault = self.fault, 0
        luck = random.random()
        if luck < self.settings.crash:
            fault = 1
        elif luck < self.settings.crash + self.settings.hang:
            fault = 2
        if fault == 1:
            print("the player gives up", flush=True)
            os._exit(3)
        if fault == 2:
            time.sleep(3600)
        if fault == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == 4:
            os._exit(0)
        if fault == 5:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
            print(f"left child {child.pid} behind", flush=True)
            os._exit(4)
        self.bad_image = self.bad_image or fault == 6
        if fault == 7:
            self.appear("Guest?team=0")
        if fault == 8:
            self.agents[0].alive, self.agents[0].wakes = False, -1
        if fault == 9:
            self.quiet = 3

    def output(self, told: dict[str, list[Any]]) -> Any:
        """Return the message that tells what agents have to tell."""
        from mlagents_envs.communicator_objects.unity_message_pb2 import UnityMessageProto

        message = UnityMessageProto()
        message.header.status = 200
        output = message.unity_output
        for behavior, infos in told.items():
            output.rl_output.agentInfos[behavior].value.extend(infos)
            if behavior not in self.told:
                self.told.add(behavior)
                parameters = output.rl_initialization_output.brain_parameters.add(brain_name=behavior)
                parameters.action_spec.num_continuous_actions = self.settings.continuous
                parameters.action_spec.num_discrete_actions = len(self.settings.branches)
                parameters.action_spec.discrete_branch_sizes.extend(self.settings.branches)
        self.tell_stat("wrong_actions", float(self.wrong))
        output.rl_output.side_channel, self.messages = self.messages, b""
        return message


def picture(number: int, height: int, width: int, channels: int) -> Any:
    """Return what the agent of a number sees, uint8 (height, width, channels)."""
    import numpy as np

    grid = np.arange(height * width * channels, dtype=np.uint32).reshape(height, width, channels)
    return ((grid * 7 + number * 31) % 256).astype(np.uint8)


def main(text: str) -> None:
    """Run a player: connect to the port of the command line, and do as the protocol says."""
    fields = json.loads(text)
    settings = Settings(**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()})
    words = sys.argv[1:]
    port = int(words[words.index("--mlagents-port") + 1])
    if "-logFile" in words:
        Path(words[words.index("-logFile") + 1]).write_text(f"stand-in player, words: {words}\n")
    if not settings.connects:
        time.sleep(3600)
    from agentgpt_remote.wrappers.unity import compat

    compat.load()
    run(settings, port)


def run(settings: Settings, port: int) -> None:
    """Speak the protocol until the host says to quit."""
    import grpc
    from mlagents_envs.communicator_objects.unity_message_pb2 import UnityMessageProto
    from mlagents_envs.communicator_objects.unity_to_external_pb2_grpc import UnityToExternalProtoStub

    limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=limits) as channel:
        stub = UnityToExternalProtoStub(channel)
        first = UnityMessageProto()
        first.header.status = 200
        told = first.unity_output.rl_initialization_output
        told.name, told.communication_version, told.package_version = "stand-in", settings.api, "2.0.1"
        told.capabilities.baseRLCapabilities = True
        reply = stub.Exchange(first, wait_for_ready=True)
        if reply.header.status != 200:
            sys.exit(1)
        player = Player(settings, reply.unity_input.rl_initialization_input.seed)
        reply = stub.Exchange(UnityMessageProto())
        while reply.header.status == 200:
            command = reply.unity_input.rl_input
            player.listen(command.side_channel)
            player.fail()
            if command.command == 1:  # RESET
                answer = player.reset()
            else:
                given = {name: list(command.agent_actions[name].value) for name in list(command.agent_actions)}
                answer = player.step(given)
            reply = stub.Exchange(player.output(answer))
