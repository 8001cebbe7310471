"""What a training run is told: hyperparameters, their ranges and how the open ones are resolved."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.policy.config import GPTConfig, GPTType
from agentgpt_remote.trainer.exploration import Exploration, check_exploration

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class EnvHost:
    """A host to train on.

    Attributes:
        env_endpoint: its URL, ``ws://`` or ``http://``.
        num_agents: environments to open there; None takes as many as the host offers by default.
    """

    env_endpoint: str
    num_agents: int | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ConfigError: not a URL, or fewer than one environment.
        """
        if not isinstance(self.env_endpoint, str) or "://" not in self.env_endpoint:
            raise ConfigError(f"env_endpoint={self.env_endpoint!r}: expected a URL such as 'ws://127.0.0.1:8000'")
        if self.num_agents is not None and (not isinstance(self.num_agents, int) or self.num_agents < 1):
            raise ConfigError(f"num_agents={self.num_agents!r}: expected None or an integer of at least 1")


@dataclass(frozen=True)
class _Range:
    """Inclusive bounds of a number, or open ones."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        low = f"{'more than' if self.open_low else 'at least'} {self.low:g}"
        high = "less than" if self.open_high else "at most"
        return low if math.isinf(self.high) else f"{low} and {high} {self.high:g}"


_COUNT, _POSITIVE, _UNIT = _Range(1), _Range(0, open_low=True), _Range(0, 1)
DEFAULT_NUM_ENVS = 16
_RANGES = {
    "num_envs": _COUNT,
    "lanes_per_host": _COUNT,
    "max_steps": _COUNT,
    "seed": _Range(0, 2**31 - 1),
    "num_layers": _Range(1, 64),
    "dropout": _Range(0, 1, open_high=True),
    "critic_num_layers": _Range(1, 64),
    "d_model": _Range(2, 8192),
    "num_heads": _Range(1, 128),
    "max_input_states": _Range(1, 8192),
    "rollout_steps": _COUNT,
    "chunk_steps": _COUNT,
    "batch_size": _COUNT,
    "replay_ratio": _Range(0, 10_000, open_low=True),
    "buffer_size": _COUNT,
    "recent_fraction": _UNIT,
    "tau": _Range(0, 1, open_low=True),
    "learning_starts": _Range(0),
    "entropy_target": _UNIT,
    "policy_gradient_coef": _Range(0),
    "lr_init": _Range(0, 1, open_low=True),
    "lr_end": _Range(0, 1),
    "lr_warmup_updates": _Range(0),
    "critic_lr_factor": _POSITIVE,
    "max_grad_norm": _POSITIVE,
    "gamma_init": _UNIT,
    "lambda_init": _UNIT,
    "meta_lr": _Range(0, 1, open_low=True),
    "clip_range": _POSITIVE,
    "target_kl": _POSITIVE,
    "entropy_coef": _Range(0),
    "init_log_std": _Range(-10, 5),
    "torch_threads": _Range(1, 1024),
    "checkpoint_interval_s": _POSITIVE,
    "keep_checkpoints": _COUNT,
    "max_agents": _COUNT,
    "eval_interval_steps": _Range(0),
    "eval_episodes": _COUNT,
    "step_timeout_s": _POSITIVE,
    "checkpoint_replay": _Range(0),
    "host_wait_s": _Range(0),
}


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What to learn on, and how. A field that is None is resolved when training starts, shown and saved.

    Under torchrun sizes are those of each rank (environments, rollout, batch, replay), ``max_steps`` and
    ``learning_starts`` those of all together.

    Attributes:
        env_id: source of the environment, hosted by a process of its own on this machine.
        env_hosts: hosts to train on instead, by name.
        env_kwargs: keyword arguments of the environment.
        num_envs: environments of the host that is started for ``env_id``; of several ranks each starts one. None for
            16, or, of a Unity build, for one player.
        max_agents: agents of one behaviour that live at once in one session's environments of many agents; None for as
            many as are known beforehand, else half more than there are at the beginning. Where more live, those that
            have not acted for longest lose their memory.
        lanes_per_host: sessions that a host's environments are split over, so that one steps, or travels, while
            another is acted on; by default 1, and for hosts at URLs that are 5 ms away or more as many as their
            measured distance needs.
        max_steps: environment steps of the run, all agents together.
        seed: seed of the environments, the first weights, the actions and the order of training.
        algorithm: "ppo" learns from what the latest policy did, "offpolicy" from a replay of everything that is held;
            "auto" takes ppo for discrete actions or where steps come fast, else offpolicy.
        resume_training: continue the run from its last checkpoint.
        use_tensorboard: write TensorBoard events beside metrics.jsonl.
        use_cloudwatch: a training job in the cloud has its metrics in CloudWatch; elsewhere this does nothing.
        wandb_project: also log to this project of Weights & Biases.
        eval_interval_steps: environment steps between evaluations with greedy actions, on environments opened beside
            those that are trained on; 0 for none. By default a tenth of the run, at least 20,000.
        eval_episodes: episodes of such an evaluation.
        device: torch device that learns and acts: "auto", "cpu", "cuda", "cuda:1", ...
        torch_threads: threads of torch's operators.
        gpt_type: "llama" (RMSNorm, rotary positions, SwiGLU) or "gpt2" (LayerNorm, learned positions, GELU).
        num_layers: transformer blocks of the actor.
        critic_num_layers: transformer blocks of the critic; by default as many, and half as many on discrete actions.
        d_model: width of a token.
        num_heads: attention heads.
        dropout: must be 0: another value makes the stored probabilities of actions wrong, and is refused.
        max_input_states: attention window in tokens, the current one included.
        rollout_steps: environment steps collected for one update, all agents together.
        chunk_steps: consecutive steps of one agent that are trained on as one sequence.
        batch_size: environment steps per gradient step.
        replay_ratio: how often each environment step is trained on: exactly, on average, under offpolicy; at most
            under ppo, whose KL stop may end earlier.
        buffer_size: offpolicy: environment steps that the replay holds, all agents together.
        recent_fraction: offpolicy: part of a batch that is drawn from the newest 4,096 steps instead of all held ones.
        tau: offpolicy: rate at which the slow copies that targets are taken from follow, per gradient step.
        learning_starts: offpolicy: environment steps with random actions before the first gradient step.
        entropy_target: offpolicy: entropy of discrete actions that is held, as a fraction of the largest.
        policy_gradient_coef: offpolicy on a Discrete space: weight of the gradient of the actions that were taken.
        critic_memory: offpolicy with given actions: the critics remember as the actor does; False is faster, and
            enough where an observation tells everything.
        exploration: noise on top of the policy's own by kind of action, "continuous" and "discrete".
        lr_init: first learning rate.
        lr_end: last learning rate.
        lr_scheduler: how the learning rate falls over ``max_steps``.
        lr_warmup_updates: gradient steps over which the learning rate first rises.
        critic_lr_factor: the critic's learning rate as a multiple of the actor's.
        max_grad_norm: gradients of the actor and of the critic are clipped to this norm each.
        gamma_init: discount factor, or where it begins.
        lambda_init: decay of the generalised advantage estimate, or of Retrace's traces, or where it begins.
        learn_gamma: learn the discount factor by meta-gradient, within a quarter and four times its first horizon.
        learn_lambda: learn the decay likewise, within a quarter and four times its first odds.
        meta_lr: learning rate of both, of the logarithms of horizon and odds.
        clip_range: clip of the probability ratio.
        target_kl: an epoch whose mean KL divergence from the acting policy exceeds this is the update's last.
        entropy_coef: first weight of the entropy bonus; it falls linearly to 0 over ``max_steps``.
        init_log_std: first log standard deviation of continuous actions, in units of half the action range.
        normalize_observations: normalise numeric observations by their running mean and deviation.
        normalize_rewards: divide rewards by the running deviation of their discounted sums.
        checkpoint_interval_s: seconds between checkpoints; the end of training always writes one.
        keep_checkpoints: how many of the last checkpoints are kept, beside the best.
        checkpoint_replay: steps of experience, all agents together, that a checkpoint holds whether they were trained
            on or not; what is untrained and its context is always held.
        step_timeout_s: seconds without a reply after which a host counts as lost.
        host_wait_s: seconds that a run whose last host is lost waits for one to return.
        nonfinite: what is done about an observation or reward that is not finite: "refuse" ends the run and names it,
            "clip" replaces it by a number within the range seen so far.
    """

    env_id: str | None = None
    env_hosts: Mapping[str, EnvHost] = field(default_factory=dict)
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_envs: int | None = None
    max_agents: int | None = None
    lanes_per_host: int | None = None
    max_steps: int = 100_000
    seed: int = 0
    algorithm: Literal["auto", "ppo", "offpolicy"] = "auto"
    resume_training: bool = False
    use_tensorboard: bool = True
    use_cloudwatch: bool = True
    wandb_project: str | None = None
    eval_interval_steps: int | None = None
    eval_episodes: int = 5
    device: str = "auto"
    torch_threads: int | None = None
    gpt_type: GPTType = "llama"
    num_layers: int | None = None
    critic_num_layers: int | None = None
    d_model: int | None = None
    num_heads: int | None = None
    dropout: float = 0.0
    max_input_states: int = 16
    rollout_steps: int | None = None
    chunk_steps: int | None = None
    batch_size: int | None = None
    replay_ratio: float | None = None
    buffer_size: int = 100_000
    recent_fraction: float | None = None
    tau: float | None = None
    learning_starts: int | None = None
    entropy_target: float = 0.2
    policy_gradient_coef: float = 1.0
    critic_memory: bool | None = None
    exploration: Mapping[str, Exploration] = field(default_factory=dict)
    lr_init: float | None = None
    lr_end: float | None = None
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    lr_warmup_updates: int = 20
    critic_lr_factor: float | None = None
    max_grad_norm: float | None = None
    gamma_init: float = 0.99
    lambda_init: float | None = None
    learn_gamma: bool = False
    learn_lambda: bool = False
    meta_lr: float = 1e-3
    clip_range: float = 0.2
    target_kl: float = 0.03
    entropy_coef: float | None = None
    init_log_std: float = -0.5
    normalize_observations: bool = True
    normalize_rewards: bool = True
    checkpoint_interval_s: float = 5.0
    keep_checkpoints: int = 3
    checkpoint_replay: int | None = None
    step_timeout_s: float = 60.0
    host_wait_s: float = 60.0
    nonfinite: Literal["refuse", "clip"] = "refuse"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: a field of the wrong type or out of range.
        """
        hints = typing.get_type_hints(type(self))
        for spec in fields(self):
            value = _checked(spec.name, getattr(self, spec.name), hints[spec.name])
            object.__setattr__(self, spec.name, value)
        if self.lr_init is not None and self.lr_end is not None and self.lr_end > self.lr_init:
            raise ConfigError(f"lr_end={self.lr_end!r}: expected at most lr_init={self.lr_init!r}")
        if self.dropout:
            raise ConfigError(
                f"dropout={self.dropout!r}: expected 0. Actions are stored with their probability under the network "
                "that acted; with dropout each pass is another network, so the ratio to it would be noise instead of "
                "the change of the policy"
            )
        if self.env_id is not None and self.env_hosts:
            raise ConfigError(f"env_id={self.env_id!r} and env_hosts are both set: expected one of them")

    @property
    def envs_per_host(self) -> int:
        """Environments of a host that does not say how many it offers, of one agent each."""
        return self.num_envs or DEFAULT_NUM_ENVS

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Hyperparameters:
        """Build from ``to_dict``'s result, or from any mapping of field names to values.

        Raises:
            ConfigError: an unknown field (the closest name is given), a wrong type or a value out of range.
        """
        names = [spec.name for spec in fields(cls)]
        for name in values:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
                hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}"
                raise ConfigError(f"unknown hyperparameter {name!r}: {hint}")
        return cls(**values)

    def resolve(self, device: str, *, continuous: bool = False, num_agents: int = 16) -> Hyperparameters:
        """Return a copy in which nothing is open; an algorithm that is still "auto" becomes "ppo".

        Args:
            device: torch device in use, such as "cpu" or "cuda:0".
            continuous: the action space has continuous columns only.
            num_agents: agents that are trained on at once.
        """
        algorithm = "ppo" if self.algorithm == "auto" else self.algorithm
        small = device.startswith("cpu")
        d_model = self.d_model or (64 if small else 256)
        layers = self.num_layers or (2 if small else 4)
        open_fields: dict[str, Any] = {
            "algorithm": algorithm,
            "device": device,
            "num_envs": self.envs_per_host,
            "lanes_per_host": 1,
            "eval_interval_steps": max(20_000, self.max_steps // 10),
            "torch_threads": 1 if small and d_model <= 128 else None,
            "num_layers": layers,
            "critic_num_layers": layers if continuous else max(1, layers // 2),
            "d_model": d_model,
            "num_heads": _heads(d_model),
        }
        rule = self._ppo_defaults if algorithm == "ppo" else self._offpolicy_defaults
        open_fields |= rule(continuous, num_agents, 1.0 if d_model <= 128 else 0.3)
        chosen = {name: value for name, value in open_fields.items() if getattr(self, name) in (None, "auto")}
        if chosen.get("torch_threads", 1) is None:
            chosen["torch_threads"] = _usable_cores()
        return replace(self, **chosen)

    def _ppo_defaults(self, continuous: bool, num_agents: int, lr_factor: float) -> dict[str, Any]:
        rollout = self.rollout_steps or max(1024, 64 * num_agents)
        lr_init = self.lr_init or (5e-4 if continuous else 1e-3) * lr_factor
        return {
            "rollout_steps": rollout,
            "chunk_steps": max(1, min(64, rollout // num_agents)),
            "batch_size": min(256, rollout),
            "replay_ratio": 10.0 if continuous else 4.0,
            "lr_init": lr_init,
            "lr_end": lr_init * 0.02,
            "max_grad_norm": 0.5,
            "lambda_init": 0.9 if continuous else 0.95,
            "entropy_coef": 0.0 if continuous else 0.01,
            "recent_fraction": 0.0,
            "critic_lr_factor": 1.0,
            "tau": 1.0,
            "learning_starts": 0,
            "critic_memory": True,
            "checkpoint_replay": 0,
        }

    def _offpolicy_defaults(self, continuous: bool, num_agents: int, lr_factor: float) -> dict[str, Any]:
        chunk = self.chunk_steps or (7 if continuous else 31)
        lr_init = self.lr_init or (1e-3 if continuous else 5e-4) * lr_factor
        return {
            "rollout_steps": num_agents,
            "chunk_steps": chunk,
            "batch_size": (32 if continuous else 16) * chunk,
            "replay_ratio": 56.0 if continuous else 31.0,
            "lr_init": lr_init,
            "lr_end": lr_init * 0.1,
            "max_grad_norm": 10.0 if continuous else 1.0,
            "lambda_init": 0.0 if continuous else 0.95,
            "entropy_coef": 0.0,
            "recent_fraction": 0.0 if continuous else 0.5,
            "critic_lr_factor": 1.0 if continuous else 3.0,
            "tau": 0.02,
            "learning_starts": 1000,
            "critic_memory": True,
            "checkpoint_replay": self.buffer_size,
        }

    def critic_config(self) -> GPTConfig:
        """Return the critic's sizes; call it on resolved hyperparameters.

        Raises:
            ConfigError: sizes that do not fit each other, or are still open.
        """
        return replace(self.model_config(), num_layers=self.critic_num_layers or 0)

    def model_config(self) -> GPTConfig:
        """Return the actor's sizes; call it on resolved hyperparameters.

        Raises:
            ConfigError: sizes that do not fit each other, or are still open.
        """
        sizes = {name: getattr(self, name) for name in ("num_layers", "d_model", "num_heads", "max_input_states")}
        squashed = self.algorithm == "offpolicy"
        return GPTConfig(**sizes, gpt_type=self.gpt_type, init_log_std=self.init_log_std, squashed=squashed)


def required(value: _T | None) -> _T:
    """Return a resolved hyperparameter.

    Raises:
        ValueError: it is open.
    """
    if value is None:
        raise ValueError("hyperparameters are open: expected the result of Hyperparameters.resolve")
    return value


def _usable_cores() -> int:
    import os

    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count - 1)


def _heads(d_model: int) -> int:
    """Return how many heads of width 32 make up the model's width, or of the next width that divides it."""
    return next((d_model // size for size in (32, 64, 16, 8, 4) if d_model % size == 0), 1)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return the value, checked against its annotation and range."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise ConfigError(f"{name}={value!r}: expected one of {', '.join(map(repr, typing.get_args(kind)))}")
        return value
    if name == "env_hosts":
        return _checked_hosts(value)
    if name == "exploration":
        return check_exploration(value)
    if typing.get_origin(kind) is not None:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}={value!r}: expected a mapping")
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name}={value!r}: expected {_describe(name, kind)}, got {type(value).__name__}")
    limits = _RANGES.get(name)
    if limits is not None and not limits.holds(value):
        raise ConfigError(f"{name}={value!r}: expected {_describe(name, kind)}")
    return value


def _describe(name: str, kind: type) -> str:
    noun = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[kind]
    return f"{noun} of {_RANGES[name]}" if name in _RANGES else noun


def _checked_hosts(value: Any) -> dict[str, EnvHost]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"env_hosts={value!r}: expected a mapping of names to EnvHost")
    hosts = {}
    for name, host in value.items():
        if isinstance(host, Mapping):
            unknown = set(host) - {"env_endpoint", "num_agents"}
            if unknown or "env_endpoint" not in host:
                raise ConfigError(f"env_hosts[{name!r}]={host!r}: expected the fields env_endpoint and num_agents")
            host = EnvHost(**host)
        if not isinstance(host, EnvHost):
            raise ConfigError(f"env_hosts[{name!r}]={host!r}: expected an EnvHost")
        hosts[str(name)] = host
    return hosts
