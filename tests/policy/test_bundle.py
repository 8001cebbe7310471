"""Bundles: what is saved is what is loaded, and damage is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from agentgpt_remote.errors import BundleError
from agentgpt_remote.policy.bundle import load_bundle, save_bundle
from tests.policy.conftest import SPACES, make_model


@pytest.fixture
def folder(tmp_path: Path, bundles: dict[str, Path]) -> Path:
    return Path(shutil.copytree(bundles["cartpole"], tmp_path / "policy"))


@pytest.mark.parametrize("name", SPACES)
def test_bundle_round_trip_is_exact(name: str, bundles: dict[str, Path]) -> None:
    bundle, model = load_bundle(bundles[name]), make_model(name)
    assert (bundle.observation_space, bundle.action_space) == SPACES[name]
    assert bundle.config == model.config
    assert bundle.provenance == {"source": name, "env_steps": 0}
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, bundle.model.state_dict()[key]), key
    assert not any(parameter.requires_grad for parameter in bundle.model.parameters())


def test_bundle_is_json_and_safetensors_with_a_card(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert json.loads((folder / "config.json").read_text())["format_version"] == 1
    card = (folder / "README.md").read_text()
    assert "GPT policy for cartpole" in card
    assert "GPTPolicy(" in card


def test_save_bundle_replaces_the_one_that_is_there(folder: Path) -> None:
    save_bundle(folder, make_model("cartpole", seed=5), provenance={"env_steps": 7})
    assert load_bundle(folder).provenance == {"env_steps": 7}
    assert len(list(folder.iterdir())) == 3


def test_bundle_from_before_model_types_and_images_loads(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    before = {name: value for name, value in config["model"].items() if name not in ("gpt_type", "image_encoder")}
    _edit(folder, model=before)
    assert (load_bundle(folder).config.gpt_type, load_bundle(folder).config.image_encoder) == ("llama", "none")


def test_missing_bundle_says_where_bundles_come_from(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no policy bundle at .*nowhere.*agentgpt train"):
        load_bundle(tmp_path / "nowhere")


def test_run_folder_instead_of_its_bundle_is_recognised(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"did you mean .*policy"):
        load_bundle(folder.parent)


def test_truncated_weights_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"model\.safetensors is damaged or cut short"):
        load_bundle(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors is missing"):
        load_bundle(folder)


def test_other_format_version_names_both(folder: Path) -> None:
    _edit(folder, format_version=99)
    with pytest.raises(BundleError, match=r"format 99 .*reads format 1: upgrade"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"observation_space": {"type": "Box"}},
        {"model": {"num_layers": 0}},
        {"model": {"layers": 2}},
        {"action_space": 3},
    ],
)
def test_damaged_configuration_is_named(folder: Path, change: dict[str, object]) -> None:
    _edit(folder, **change)
    with pytest.raises(BundleError, match=r"config\.json is damaged"):
        load_bundle(folder)


def test_configuration_that_is_no_json_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(BundleError, match="not a bundle's configuration"):
        load_bundle(folder)


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    _edit(folder, model=config["model"] | {"num_layers": 3})
    with pytest.raises(BundleError, match=r"does not fit config\.json"):
        load_bundle(folder)


def _edit(folder: Path, **change: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
