"""Exceptions that the package raises, all picklable.

Each class also inherits the builtin that users already catch::

    AgentGPTError
    ├── ConnectionLost (ConnectionError)      the socket ended and could not be resumed
    │   └── HostUnreachable                   nothing listens there, or not in time
    ├── RemoteTimeout (TimeoutError)          connected, but no reply within the deadline
    ├── AuthError (PermissionError)           a token is missing or wrong
    ├── ProtocolError                         the peer sent what the protocol does not allow
    │   └── ProtocolMismatch                  the peer speaks another version, or is another service
    ├── CapacityReached                       the host has no room for the session or its envs
    ├── RemoteEnvError                        the environment raised on its host
    ├── UnsupportedSpace (TypeError)          a space that can't be sent, or learned from
    ├── NotSendable (TypeError)               a value that the wire can't carry
    ├── InvalidArgument (TypeError)           an argument that the environment's constructor does not take, or lacks
    ├── InvalidAction (ValueError)            an action outside the action space
    ├── InvalidObservation (ValueError)       an observation that does not fit the policy's space
    ├── UnknownAgent (KeyError)               an agent id that the policy does not hold
    ├── ConfigError (ValueError)              a hyperparameter or an option is unknown or out of range
    │   └── ManyAgents                        the environment has many agents, and the client acts for one
    ├── BundleError (ValueError)              a policy bundle is missing, damaged or of another version
    ├── RunExists (FileExistsError)           a run id that is taken, without resume or force
    ├── PortInUse (OSError)                   another process listens on the port
    ├── PlayerFailed (RuntimeError)           a Unity player did not start, ended, or hangs
    ├── RenderError (RuntimeError)            an environment or this machine can't show what happens
    ├── ChildProcessFailed (RuntimeError)     a process that the package started ended early
    ├── CloudError (RuntimeError)             a cloud refused or failed what was asked of it
    └── TrainingFailed (RuntimeError)         training ended with an error

Gymnasium's own are reused where they say it: ``ClosedEnvironmentError``, ``ResetNeeded``,
``NameNotFound``, ``DependencyNotInstalled``.
"""

from __future__ import annotations


class AgentGPTError(Exception):
    """Root of every exception that the package defines."""


class ConnectionLost(AgentGPTError, ConnectionError):
    """The connection ended and the session could not be resumed."""


class HostUnreachable(ConnectionLost):
    """Nothing accepted a connection at the URL within the connect timeout."""


class RemoteTimeout(AgentGPTError, TimeoutError):
    """The peer is connected but did not reply within the deadline."""


class AuthError(AgentGPTError, PermissionError):
    """A token is missing, wrong, or required before listening beyond this machine."""


class ProtocolError(AgentGPTError):
    """The peer sent a message that the protocol does not allow."""


class ProtocolMismatch(ProtocolError):
    """The peer speaks another protocol version, or is another kind of service."""


class CapacityReached(AgentGPTError):
    """The host has no room for another session, or for that many environments."""


class RemoteEnvError(AgentGPTError):
    """An environment raised on its host.

    Attributes:
        remote_type: qualified name of the exception's class on the host.
        remote_message: its text.
        remote_traceback: the formatted traceback of the host.
    """

    def __init__(self, remote_type: str, remote_message: str, remote_traceback: str = "") -> None:
        super().__init__(remote_type, remote_message, remote_traceback)
        self.remote_type = remote_type
        self.remote_message = remote_message
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        text = f"the environment raised {self.remote_type} on its host: {self.remote_message}"
        if not self.remote_traceback:
            return text
        return f"{text}\n\nTraceback on the host:\n{self.remote_traceback.rstrip()}"


class UnsupportedSpace(AgentGPTError, TypeError):
    """A space that can't be sent over the wire, or can't be learned from."""


class NotSendable(AgentGPTError, TypeError):
    """A value that can't be sent: of a type that would need code on the other side."""


class InvalidArgument(AgentGPTError, TypeError):
    """An argument that the environment's constructor does not take, or one that it lacks."""


class InvalidAction(AgentGPTError, ValueError):
    """An action outside the action space."""


class InvalidObservation(AgentGPTError, ValueError):
    """An observation that does not fit the space the policy was trained on, or is not finite."""


class UnknownAgent(AgentGPTError, KeyError):
    """An agent id that the policy does not hold."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConfigError(AgentGPTError, ValueError):
    """A hyperparameter or an option that is unknown, of the wrong type or out of range."""


class ManyAgents(ConfigError):
    """The environment has many agents, and the client acts for one."""


class BundleError(AgentGPTError, ValueError):
    """A policy bundle that is missing, damaged or of another format version."""


class RunExists(AgentGPTError, FileExistsError):
    """The run folder exists and neither resume nor force was asked for."""


class PortInUse(AgentGPTError, OSError):
    """Another process listens on the port."""


class RenderError(AgentGPTError, RuntimeError):
    """An environment has no frames to show, or there is no way here to show or write them."""


class ChildProcessFailed(AgentGPTError, RuntimeError):
    """A process that the package started ended before it was ready, or unexpectedly."""


class PlayerFailed(AgentGPTError, RuntimeError):
    """A Unity player could not be started, ended, closed its connection, or hangs; it is gone."""


class CloudError(AgentGPTError, RuntimeError):
    """A cloud refused, or failed at, what was asked of it; the text says what is left running."""


class TrainingFailed(AgentGPTError, RuntimeError):
    """Training ended with an error; the last checkpoint is kept."""


def check_seconds(name: str, value: object, *, zero: bool = False) -> None:
    """Check a duration that a user gave.

    Args:
        name: of the argument.
        value: seconds.
        zero: whether 0 makes sense.

    Raises:
        ConfigError: it is not a finite number of seconds, or out of range.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 <= value < float("inf")) or (value == 0 and not zero):  # type: ignore[operator]
        least = "at least 0" if zero else "more than 0"
        raise ConfigError(f"{name}={value!r} is out of range: expected seconds, {least}")


_EXTRA_OF_MODULE = {
    "torch": "train",
    "safetensors": "train",
    "tensorboard": "train",
    "matplotlib": "train",
    "stable_baselines3": "sb3",
    "wandb": "wandb",
    "boto3": "cloud",
    "botocore": "cloud",
    "sagemaker": "sagemaker",
    "moto": "rehearse",
    "onnxruntime": "onnx",
    "cryptography": "tls",
    "pettingzoo": "pettingzoo",
    "mlagents_envs": "unity",
    "grpc": "unity",
    "imageio_ffmpeg": "video",
    "pygame": "video",
    "huggingface_hub": "hub",
    "pyngrok": "tunnel",
}


def missing_dependency(error: ModuleNotFoundError) -> Exception:
    """Return the exception that tells which extra holds a missing module.

    Args:
        error: as raised by the import.

    Returns:
        Gymnasium's ``DependencyNotInstalled`` with the command to type, or ``error`` itself where
        the module belongs to no extra.
    """
    from gymnasium.error import DependencyNotInstalled

    extra = _EXTRA_OF_MODULE.get((error.name or "").partition(".")[0])
    if extra is None:
        return error
    return DependencyNotInstalled(f'{error.name} is not installed: run `pip install "agentgpt-remote[{extra}]"`')
