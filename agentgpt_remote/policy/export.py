"""Bundles as ONNX files for other runtimes: ``agentgpt export``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector.utils import batch_space

from agentgpt_remote._version import __version__
from agentgpt_remote.endpoints import HUB_SCHEME
from agentgpt_remote.errors import BundleError, ConfigError
from agentgpt_remote.files import replacing
from agentgpt_remote.policy.bundle import load_bundle
from agentgpt_remote.policy.bundle_files import CARD_FILE, read_bundle
from agentgpt_remote.policy.features import Float32
from agentgpt_remote.policy.hub import local_bundle
from agentgpt_remote.policy.onnx_file import OPSET
from agentgpt_remote.policy.onnx_graph import StepGraph
from agentgpt_remote.policy.onnx_runner import METADATA_KEY, OnnxModel, OnnxRunner
from agentgpt_remote.policy.opening import ONNX_SUFFIX
from agentgpt_remote.policy.runner import SlotIndex
from agentgpt_remote.policy.torch_runner import TorchRunner
from agentgpt_remote.spaces import space_to_dict

TOLERANCE = 1e-5
_AGENTS = 3


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was exported.

    Attributes:
        path: the file.
        opset: version of the operators that it uses.
        bytes: its size.
        max_difference: largest difference between its outputs and torch's, beside outputs of 1 or less; relative to
            larger ones.
        checked_steps: steps that were compared, of several agents each.
        inputs: name, dtype and shape of each input.
        outputs: the same of each output.
    """

    path: str
    opset: int
    bytes: int
    max_difference: float
    checked_steps: int
    inputs: list[list[Any]]
    outputs: list[list[Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


def export_onnx(bundle: str | Path, out: str | Path | None = None) -> Export:
    """Write a bundle as an ONNX file: one step of the model, with the KV cache as inputs and outputs.

    The file is compared with the model in torch before it is written, over more steps than the model can see.

    Args:
        bundle: its folder, or ``hf://OWNER/NAME[@REVISION]``.
        out: the file; by default ``policy.onnx`` in the bundle.

    Returns:
        What was written, and how far its outputs differ.

    Raises:
        BundleError: the bundle is missing or damaged, or the file would not act as it does.
        ConfigError: ``out`` does not end in ``.onnx``, is a folder, or is in a folder that is not there.
    """
    if out is None and str(bundle).startswith(HUB_SCHEME):
        raise ConfigError(f"{bundle} is on a hub: name the file to write with --out policy.onnx")
    bundle = local_bundle(bundle)
    files = read_bundle(bundle)
    path = files.path / "policy.onnx" if out is None else Path(out)
    if path.suffix != ONNX_SUFFIX or path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"out={str(path)!r}: expected a file that ends in {ONNX_SUFFIX}, in a folder that is there")
    weights = files.weights()
    log_std = np.asarray(weights["log_std"], np.float32)
    description = {
        "agentgpt_remote": __version__,
        "observation_space": space_to_dict(files.observation_space, "observation_space"),
        "action_space": space_to_dict(files.action_space, "action_space"),
        "model": files.config.to_dict(),
        "log_std": log_std.tolist(),
    }
    spaces = files.observation_space, files.action_space
    data = StepGraph(*spaces, files.config, weights).build({METADATA_KEY: json.dumps(description)}, whole=True)
    model = OnnxModel(*spaces, files.config, graph=data, log_std=log_std, whole=True)
    steps = 2 * files.config.max_input_states + 3
    difference = _difference(TorchRunner(load_bundle(bundle).model), OnnxRunner(model), steps)
    if not difference <= TOLERANCE:
        raise BundleError(
            f"{files.path} as ONNX differs from torch by {difference:.2g}, expected at most {TOLERANCE}: nothing was "
            f"written; please report it with the {CARD_FILE} of the bundle"
        )
    with replacing(path) as file:
        file.write(data)
    return Export(
        path=str(path),
        opset=OPSET,
        bytes=len(data),
        max_difference=difference,
        checked_steps=steps,
        inputs=[[node.name, node.type, list(node.shape)] for node in model.session.get_inputs()],
        outputs=[[node.name, node.type, list(node.shape)] for node in model.session.get_outputs()],
    )


def _difference(eager: TorchRunner, onnx: OnnxRunner, steps: int) -> float:
    """Return the largest difference of outputs over some steps of agents that begin episodes now and then."""
    model, worst = onnx.model, 0.0
    eager.grow(_AGENTS)
    onnx.grow(_AGENTS)
    observations = batch_space(model.observation_space, _AGENTS)
    actions = batch_space(model.action_space, _AGENTS)
    observations.seed(0), actions.seed(0)
    index = SlotIndex(np.arange(_AGENTS), slice(0, _AGENTS))
    for t in range(steps):
        batch = observations.sample()
        obs, pixels = model.observations.encode(batch), model.observations.pixels(batch)
        # What random draws from unbounded spaces give is far from what a policy sees.
        obs = np.clip(obs, -1e6, 1e6)
        previous = model.actions.encode(actions.sample())
        first = np.array([t == 0 or t % (2 + 5 * agent) == agent for agent in range(_AGENTS)])
        theirs, ours = (runner.step(obs, previous, first, index, pixels) for runner in (eager, onnx))
        worst = max(worst, _largest(theirs, ours))
    return worst


def _largest(theirs: Float32, ours: Float32) -> float:
    return float((np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1.0)).max(initial=0.0))
