"""What a training container asks AWS for: hosts' tokens, and a place for its checkpoints."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping

from agentgpt_remote.cloud.container_folders import ContainerFolders
from agentgpt_remote.cloud.requests import CHECKPOINT_VARIABLE
from agentgpt_remote.errors import AgentGPTError, ConfigError
from agentgpt_remote.trainer.run_folder import CONFIG_NAME, RESULT_NAME

logger = logging.getLogger("agentgpt_remote.cloud")


def fetch_tokens(secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the hosts' tokens, by URL as ``secrets`` names them by ARN.

    A secret is the token itself, or a JSON object with the member ``token``.

    Raises:
        AuthError: the role may not read a secret.
        ConfigError: a secret is empty or binary, or its region is not known.
    """
    tokens = {}
    for url, arn in secrets.items():
        from agentgpt_remote.cloud.aws import Aws, explained

        client = Aws(arn.split(":")[3]).client("secretsmanager")
        with explained(f"read the secret {arn}"):
            text = client.get_secret_value(SecretId=arn).get("SecretString", "")
        if text.startswith("{"):
            text = str(json.loads(text).get("token", ""))
        if not text:
            raise ConfigError(f"the secret {arn} holds no token: expected it as plain text, or as {{'token': ...}}")
        tokens[url] = text
    return tokens


def upload_run(folders: ContainerFolders) -> None:
    """Upload the newest checkpoint, the configuration and the bundle; SageMaker's own copy may miss the last seconds.

    A failure is told in the log only: SageMaker copies the folder too.
    """
    uri = os.environ.get(CHECKPOINT_VARIABLE)
    root = folders.run_dir.parent
    if not uri or not folders.run_dir.is_dir():
        return
    from agentgpt_remote.cloud.aws import Aws, explained
    from agentgpt_remote.cloud.storage import upload_files

    run = folders.run_dir
    newest = sorted(run.glob("checkpoints/**/step-*.pt"), key=lambda path: path.stat().st_mtime)[-1:]
    names = (CONFIG_NAME, RESULT_NAME, "metrics.jsonl")
    paths = [*newest, *(run / name for name in names), *(run / "policy").glob("*")]
    try:
        with explained(f"upload checkpoints to {uri}"):
            count = upload_files(Aws().client("s3"), root, uri, [path for path in paths if path.is_file()])
    except AgentGPTError as error:
        logger.warning("checkpoints are left to SageMaker's own copy: %s", error)
        return
    logger.info("uploaded files=%d to=%s", count, uri)
