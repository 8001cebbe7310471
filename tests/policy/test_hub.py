"""Bundles on a model hub, through huggingface_hub and a real socket to a stand-in."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from huggingface_hub import ModelCard, constants

from agentgpt_remote import GPTPolicy, errors
from agentgpt_remote.policy import bundle_files
from agentgpt_remote.policy.bundle import load_bundle, save_bundle
from agentgpt_remote.policy.export import export_onnx
from agentgpt_remote.policy.hub import local_bundle, push_bundle
from tests.policy.conftest import make_model
from tests.policy.hub_stand_in import WRITER, HubStandIn, Repository

NAME = "alice/cartpole"
FILES = {"config.json", "model.safetensors", "README.md"}
SECRET = "hunter2-do-not-tell"
# What huggingface_hub itself does with its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A hub that huggingface_hub talks to, with a cache and a login of its own."""
    server = HubStandIn()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)  # what HF_ENDPOINT sets in a new process
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield server
    server.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "policy", make_model("cartpole"), provenance={"source": "CartPole-v1", "env_steps": 5})
    return tmp_path / "policy"


def test_pushed_bundle_acts_as_the_one_it_was(stand_in: HubStandIn, bundle: Path) -> None:
    done = push_bundle(bundle, NAME)
    assert done == {
        "url": f"{stand_in.url}/{NAME}",
        "commit": stand_in.repositories[NAME].branches["main"],
        "source": f"hf://{NAME}",
    }
    stream = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    with GPTPolicy(f"hf://{NAME}") as fetched, GPTPolicy(bundle) as local:
        assert [fetched(row) for row in stream] == [local(row) for row in stream]
    files = stand_in.repositories[NAME].commits[done["commit"]]
    assert files.keys() - {".gitattributes"} == FILES
    card = files["README.md"].decode()
    assert f'GPTPolicy("hf://{NAME}")' in card
    assert ModelCard(card).data.library_name == "agentgpt-remote"
    assert files["model.safetensors"] == (bundle / "model.safetensors").read_bytes()


def test_only_the_files_of_a_bundle_are_fetched_and_of_one_commit(stand_in: HubStandIn, bundle: Path) -> None:
    commit = push_bundle(bundle, NAME)["commit"]
    stand_in.repositories[NAME].commits[commit]["evil.pkl"] = b"cos\nsystem\n"
    stand_in.requests.clear()
    folder = local_bundle(f"hf://{NAME}")
    fetched = {path for method, path, _ in stand_in.requests if "/resolve/" in path}
    assert {path.rpartition("/")[2] for path in fetched} == FILES - {"README.md"}
    assert folder.name == commit
    assert {path.name for path in folder.iterdir()} == FILES - {"README.md"}
    stand_in.requests.clear()
    assert local_bundle(f"hf://{NAME}") == folder
    assert not any(method == "GET" and "/resolve/" in path for method, path, _ in stand_in.requests), "it is cached"


def test_bundle_that_is_pushed_meanwhile_is_never_mixed(
    stand_in: HubStandIn, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_bundle(bundle, NAME)
    files = {file: (bundle / file).read_bytes() for file in FILES}
    stand_in.before_file = lambda: stand_in.repositories[NAME].commit("main", files)
    with pytest.raises(errors.ConnectionLost, match="hf://alice/cartpole has changed while it was fetched: try again"):
        local_bundle(f"hf://{NAME}")
    stand_in.before_file = None
    assert local_bundle(f"hf://{NAME}").name == stand_in.repositories[NAME].branches["main"]


def test_revisions_are_kept_apart(stand_in: HubStandIn, bundle: Path) -> None:
    first = push_bundle(bundle, NAME)["commit"]
    save_bundle(bundle, make_model("cartpole", seed=7), provenance={"env_steps": 9})
    done = push_bundle(bundle, NAME, revision="longer")
    assert done["source"] == f"hf://{NAME}@longer"
    assert push_bundle(bundle, NAME, revision="longer") == done, "nothing has changed"
    steps = {}
    for revision in ("", "@main", "@longer", f"@{first}"):
        steps[revision] = load_bundle(local_bundle(f"hf://{NAME}{revision}")).provenance["env_steps"]
    assert steps == {"": 5, "@main": 5, "@longer": 9, f"@{first}": 5}


def test_secrets_of_a_bundle_stay_here(stand_in: HubStandIn, bundle: Path) -> None:
    # As a bundle of a version that did not know of secrets.
    config = json.loads((bundle / "config.json").read_text())
    config["provenance"]["hyperparameters"] = {
        "env_kwargs": {"api_key": SECRET},
        "env_hosts": {"x": {"env_endpoint": f"ws://me:{SECRET}@sim:1/{SECRET}"}},
    }
    (bundle / "config.json").write_text(json.dumps(config))
    (bundle / "README.md").write_text(f"{SECRET}")
    push_bundle(bundle, NAME)
    for commit in stand_in.repositories[NAME].commits.values():
        assert not any(SECRET.encode() in data for data in commit.values())
    assert all(token == WRITER for _, path, token in stand_in.requests if not path.startswith("/large/"))


def test_private_means_private(stand_in: HubStandIn, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_bundle(bundle, NAME, private=True)
    assert stand_in.repositories[NAME].private
    push_bundle(bundle, NAME, private=True)
    push_bundle(bundle, "alice/public")
    before = dict(stand_in.repositories["alice/public"].branches)
    with pytest.raises(errors.ConfigError, match=r"alice/public is there and is public, so that nothing was pushed"):
        push_bundle(bundle, "alice/public", private=True)
    assert stand_in.repositories["alice/public"].branches == before
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(errors.BundleError, match=r"no model repository alice/cartpole at .*private.*hf auth login"):
        GPTPolicy(f"hf://{NAME}")


def test_push_without_a_login_says_how_to_log_in(
    stand_in: HubStandIn, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(errors.AuthError, match=r"refuses hf://alice/cartpole \(401\).*hf auth login.*HF_TOKEN"):
        push_bundle(bundle, NAME)
    assert stand_in.repositories == {}
    monkeypatch.setenv("HF_TOKEN", "hf_wrong-token")
    with pytest.raises(errors.AuthError, match=r"refuses hf://alice/cartpole \(401\).*hf auth login") as caught:
        push_bundle(bundle, NAME)
    assert "hf_wrong-token" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with pytest.raises(errors.AuthError, match=r"refuses hf://others/x \(403\)"):
        push_bundle(bundle, "others/x")


def test_public_bundle_needs_no_login(stand_in: HubStandIn, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_bundle(bundle, NAME)
    monkeypatch.delenv("HF_TOKEN")
    assert load_bundle(local_bundle(f"hf://{NAME}")).provenance["env_steps"] == 5


def test_missing_repository_and_revision_are_named(stand_in: HubStandIn, bundle: Path) -> None:
    with pytest.raises(errors.BundleError, match=r"no model repository alice/nothing at http.*check the name"):
        GPTPolicy("hf://alice/nothing")
    push_bundle(bundle, NAME)
    with pytest.raises(errors.BundleError, match=r"alice/cartpole at .* has no revision 'nowhere'"):
        GPTPolicy(f"hf://{NAME}@nowhere")


@pytest.mark.parametrize("left_out", ["config.json", "model.safetensors"])
def test_repository_without_a_bundle_is_named(stand_in: HubStandIn, left_out: str) -> None:
    repository = stand_in.repositories["alice/other"] = Repository()
    repository.commit("main", dict.fromkeys(FILES - {left_out}, b"{}"))
    with pytest.raises(errors.BundleError, match=rf"hf://alice/other holds no policy bundle \({left_out} is missing\)"):
        GPTPolicy("hf://alice/other")
    assert not any("/resolve/" in path for _, path, _ in stand_in.requests)


def test_files_that_are_no_bundle_are_named(stand_in: HubStandIn, bundle: Path) -> None:
    repository = stand_in.repositories["alice/bert"] = Repository()
    weights = (bundle / "model.safetensors").read_bytes()
    repository.commit("main", {"config.json": b'{"model_type": "bert"}', "model.safetensors": weights})
    with pytest.raises(errors.BundleError, match=r"config\.json is not a bundle's configuration"):
        GPTPolicy("hf://alice/bert")
    config = (bundle / "config.json").read_bytes()
    repository.commit("main", {"config.json": config, "model.safetensors": b"\x80\x04pickle"})
    with pytest.raises(errors.BundleError, match=r"model\.safetensors is damaged"):
        GPTPolicy("hf://alice/bert")


def test_gated_repository_says_whom_to_ask(stand_in: HubStandIn, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_bundle(bundle, NAME)
    stand_in.repositories[NAME].gated = True
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(errors.AuthError, match="is for those whom its owner lets in"):
        GPTPolicy(f"hf://{NAME}")


def test_too_large_files_are_refused_before_they_are_fetched(
    stand_in: HubStandIn, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_bundle(bundle, NAME)
    stand_in.sizes["model.safetensors"] = 2**40
    stand_in.requests.clear()
    with pytest.raises(
        errors.BundleError, match=r"model\.safetensors of hf://alice/cartpole has 1,099,511,627,776 bytes"
    ):
        GPTPolicy(f"hf://{NAME}")
    assert not any("/resolve/" in path for _, path, _ in stand_in.requests)
    # A hub that claims less than it sends, and a folder here.
    for file in ("model.safetensors", "config.json"):
        stand_in.sizes[file] = 1
        monkeypatch.setitem(bundle_files.SIZE_LIMITS, file, 100)
        with pytest.raises(errors.BundleError, match="expected a bundle's file of at most 100"):
            GPTPolicy(f"hf://{NAME}")
        with pytest.raises(errors.BundleError, match="expected a bundle's file of at most 100"):
            load_bundle(bundle)
        monkeypatch.setitem(bundle_files.SIZE_LIMITS, file, 2**30)


@pytest.mark.parametrize(
    "name", ["alice", "/x", "alice/", "a/b/c", "alice/a b", "alice/..", "a/x--y", "alice/x@", "-/.."]
)
def test_wrong_names_are_refused(name: str, bundle: Path) -> None:
    with pytest.raises(errors.ConfigError, match="expected"):
        GPTPolicy(f"hf://{name}")
    if "@" not in name:
        with pytest.raises(errors.ConfigError, match="expected OWNER/NAME"):
            push_bundle(bundle, name)


def test_damaged_bundle_is_not_pushed(stand_in: HubStandIn, bundle: Path) -> None:
    weights = bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(errors.BundleError, match="damaged or cut short"):
        push_bundle(bundle, NAME)
    with pytest.raises(errors.BundleError, match="no policy bundle"):
        push_bundle(bundle / "nowhere", NAME)
    assert stand_in.requests == []


def test_hub_that_does_not_answer_is_an_error_in_time(stand_in: HubStandIn, bundle: Path) -> None:
    stand_in.stall = True
    began = time.monotonic()
    with pytest.raises(errors.RemoteTimeout, match="try again"):
        GPTPolicy(f"hf://{NAME}", timeout_s=0.5)
    with pytest.raises(errors.RemoteTimeout, match=r"did not answer within 0\.5 s for hf://alice/cartpole: try again"):
        push_bundle(bundle, NAME, timeout_s=0.5)
    assert time.monotonic() - began < 5


def test_hub_that_fails_is_named(stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.fail_with = 500
    with pytest.raises(errors.ConnectionLost, match=r"answered 500.*hf://alice/cartpole: try again later"):
        GPTPolicy(f"hf://{NAME}")
    stand_in.fail_with = 200
    with pytest.raises(errors.ProtocolMismatch, match=r"is no model hub \(.*check HF_ENDPOINT"):
        GPTPolicy(f"hf://{NAME}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    with pytest.raises(errors.HostUnreachable, match=f"{url} could not be reached"):
        GPTPolicy(f"hf://{NAME}", timeout_s=5)


def test_offline_takes_what_was_fetched(stand_in: HubStandIn, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_bundle(bundle, NAME)
    folder = local_bundle(f"hf://{NAME}@main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    stand_in.requests.clear()
    for revision in ("", "@main", f"@{folder.name}"):
        assert local_bundle(f"hf://{NAME}{revision}") == folder
    with pytest.raises(errors.BundleError, match="was not fetched before and HF_HUB_OFFLINE is set"):
        local_bundle("hf://alice/other")
    with pytest.raises(errors.ConfigError, match=r"HF_HUB_OFFLINE is set.*unset it"):
        push_bundle(bundle, NAME)
    assert stand_in.requests == []


def test_export_from_a_hub_needs_a_file(stand_in: HubStandIn, bundle: Path, tmp_path: Path) -> None:
    push_bundle(bundle, NAME)
    with pytest.raises(errors.ConfigError, match="--out"):
        export_onnx(f"hf://{NAME}")
    assert Path(export_onnx(f"hf://{NAME}", tmp_path / "x.onnx").path).stat().st_size


def test_missing_package_names_the_command(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: GPTPolicy(f"hf://{NAME}"), lambda: push_bundle(bundle, NAME)):
        with pytest.raises(DependencyNotInstalled, match=r'pip install "agentgpt-remote\[hub\]"'):
            call()


def test_command_pushes_and_another_process_acts(stand_in: HubStandIn, bundle: Path, tmp_path: Path) -> None:
    variables = {
        "HF_ENDPOINT": stand_in.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": WRITER,
        "HF_HUB_DISABLE_XET": "1",
    }

    def agentgpt(*words: str, **others: str) -> Any:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-m", "agentgpt_remote", *words],
            env=environment | variables | others,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    pushed = agentgpt("push", str(bundle), NAME, "--private", "--revision", "tried", "--json")
    assert pushed.returncode == 0, pushed.stderr
    told = json.loads(pushed.stdout)
    assert told["commit"] == stand_in.repositories[NAME].branches["tried"]
    played = agentgpt("eval", f"hf://{NAME}@tried", "CartPole-v1", "--episodes", "2", "--greedy", "--json")
    assert played.returncode == 0, played.stderr
    assert json.loads(played.stdout)["episodes"] == 2
    refused = agentgpt("push", str(bundle), NAME, HF_TOKEN="")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"agentgpt: error: the hub at {stand_in.url} refuses hf://{NAME} (401)")
    assert WRITER not in pushed.stdout + pushed.stderr + played.stderr
