"""The serving container: ``docker run IMAGE serve``, as Amazon SageMaker starts it.

The bundle lies in ``/opt/ml/model``; ``GET /ping`` and ``POST /invocations`` are answered on port 8080, or on the one
in ``SAGEMAKER_BIND_TO_PORT``. SageMaker's proxy alone reaches the port, and checks who calls. SIGTERM ends the server
once open requests are answered.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from agentgpt_remote.errors import BundleError, ConfigError
from agentgpt_remote.policy.invocations import SESSION_LIFETIME_S
from agentgpt_remote.policy.opening import OpenedPolicy
from agentgpt_remote.policy.server import PolicyServerOptions, policy_app
from agentgpt_remote.serving import ServerOptions, run_app

BASE_VARIABLE = "SAGEMAKER_BASE_DIR"
PORT_VARIABLE = "SAGEMAKER_BIND_TO_PORT"
HOST_VARIABLE = "AGENTGPT_BIND_HOST"
USER_VARIABLE = "AGENTGPT_CONTAINER_USER"
SESSION_VARIABLE = "AGENTGPT_SESSION_EXPIRY_S"
_PORT = 8080
_SHUTDOWN_S = 20.0  # of the 30 s that SageMaker leaves

_logger = logging.getLogger("agentgpt_remote.policy")


def serve_in_container() -> None:
    """Serve the bundle in the model folder until SIGTERM.

    Raises:
        BundleError: there is no bundle, or it is damaged.
        ConfigError: a variable makes no sense.
        PortInUse: another process listens on the port.
    """
    folder = _bundle_folder(Path(os.environ.get(BASE_VARIABLE) or "/opt/ml") / "model")
    options = PolicyServerOptions(session_lifetime_s=_number(SESSION_VARIABLE, SESSION_LIFETIME_S))
    port = _number(PORT_VARIABLE, _PORT)
    if port != int(port):
        raise ConfigError(f"{PORT_VARIABLE}={port}: expected a port")
    opened = OpenedPolicy(folder, engine=options.engine, max_agents=options.max_agents)
    told = opened.runner.describe()
    _drop_privileges()
    listening = ServerOptions(
        host=os.environ.get(HOST_VARIABLE) or "0.0.0.0",
        port=int(port),
        behind_proxy=True,
        shutdown_timeout_s=_SHUTDOWN_S,
    )
    say = f"serving {folder} with engine {told['engine']} on port {int(port)}"
    run_app(policy_app(opened, options), listening, on_ready=lambda _: _logger.info("%s", say))


def _bundle_folder(model: Path) -> Path:
    """Return the folder of the bundle: the model folder itself, or the only one in it that holds one."""
    found = [path.parent for path in (model / "config.json", *model.glob("*/config.json")) if path.exists()]
    if not found:
        raise BundleError(
            f"{model} holds no policy: expected config.json and model.safetensors at the top of model.tar.gz, as "
            "training jobs of this package write it"
        )
    return found[0]


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        return float(text or default)
    except ValueError as error:
        raise ConfigError(f"{name}={text!r}: expected a number") from error


def _drop_privileges() -> None:
    """Go on as the user that the image names, where this process is root and may."""
    name = os.environ.get(USER_VARIABLE)
    if not name or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    import pwd

    try:
        user = pwd.getpwnam(name)
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except KeyError as error:
        raise ConfigError(f"{USER_VARIABLE}={name!r}: the image has no such user") from error
    except OSError as error:
        _logger.warning("could not become user=%s, going on as root: %s", name, error)
