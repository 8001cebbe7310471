"""Train GPT policies by reinforcement learning on Gymnasium environments that live anywhere.

Importing the package makes every registered environment id available as ``agentgpt/<id>`` in
:func:`gymnasium.make` and :func:`gymnasium.make_vec`. Public names load on first use, so that a
simulation machine needs neither torch nor a web server to import it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from agentgpt_remote import registration as _registration
from agentgpt_remote._version import __version__

if TYPE_CHECKING:
    from agentgpt_remote.agentgpt import AgentGPT
    from agentgpt_remote.cloud.config import SageMakerConfig
    from agentgpt_remote.policy.gpt_policy import GPTPolicy
    from agentgpt_remote.registration import remote_spec
    from agentgpt_remote.server.serve import serve
    from agentgpt_remote.trainer.exploration import Exploration
    from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
    from agentgpt_remote.trainer.run import TrainingRun
    from agentgpt_remote.wrappers.launcher import EnvLauncher
    from agentgpt_remote.wrappers.remote_env import RemoteEnv
    from agentgpt_remote.wrappers.remote_parallel_env import RemoteParallelEnv
    from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv

_MODULES = {
    "AgentGPT": "agentgpt_remote.agentgpt",
    "EnvHost": "agentgpt_remote.trainer.hyperparameters",
    "EnvLauncher": "agentgpt_remote.wrappers.launcher",
    "Exploration": "agentgpt_remote.trainer.exploration",
    "GPTPolicy": "agentgpt_remote.policy.gpt_policy",
    "Hyperparameters": "agentgpt_remote.trainer.hyperparameters",
    "RemoteEnv": "agentgpt_remote.wrappers.remote_env",
    "RemoteParallelEnv": "agentgpt_remote.wrappers.remote_parallel_env",
    "RemoteVectorEnv": "agentgpt_remote.wrappers.remote_vector_env",
    "SageMakerConfig": "agentgpt_remote.cloud.config",
    "TrainingRun": "agentgpt_remote.trainer.run",
    "remote_spec": "agentgpt_remote.registration",
    "serve": "agentgpt_remote.server.serve",
}

__all__ = [
    "AgentGPT",
    "EnvHost",
    "EnvLauncher",
    "Exploration",
    "GPTPolicy",
    "Hyperparameters",
    "RemoteEnv",
    "RemoteParallelEnv",
    "RemoteVectorEnv",
    "SageMakerConfig",
    "TrainingRun",
    "__version__",
    "remote_spec",
    "serve",
]

_registration.install()


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        value = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        from agentgpt_remote.errors import missing_dependency

        raise missing_dependency(error) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
