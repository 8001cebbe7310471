"""Model cards: what they tell, what they never tell, and values that try to break out of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from gymnasium.vector import SyncVectorEnv
from huggingface_hub import ModelCard

from agentgpt_remote.policy.bundle import load_bundle, save_bundle
from agentgpt_remote.policy.provenance import note_evaluation
from agentgpt_remote.scrubbing import HIDDEN
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.revision import git_revision
from tests.policy.conftest import make_model
from tests.trainer.test_loop import SMALL
from tests.trainer.tiny_envs import Echo

SECRET = "hunter2-do-not-tell"
EVALUATION = {"episodes": 20, "mean": 481.5, "std": 3.25, "min": 470.0, "q25": 479.0, "q50": 482.0, "q75": 484.0}
HOSTILE = [
    "CartPole-v1",
    "a: b\n---\nlicense: mit",
    "```\n# Taken\n```",
    "\"quoted\" \\ and 'single' ``",
    "<script>alert(1)</script> [x](javascript:y) ![i](z) | # *b* _i_",
    "\u202eright to left\x00\x1b[31m\u2028",
    "\ud800 lone",
    "- list\n- of [things]",
    "{flow: map}",
    "&anchor *alias !tag %directive",
]


def _card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def _saved(folder: Path, **provenance: Any) -> str:
    save_bundle(folder, make_model("cartpole"), provenance=provenance)
    return _card(folder)


def test_trainer_writes_a_card_of_what_it_did(tmp_path: Path) -> None:
    envs = SyncVectorEnv([Echo])
    result = train(Hyperparameters(max_steps=600, seed=5, **SMALL), run_dir=tmp_path / "run", envs=[envs])
    envs.close()
    provenance = load_bundle(result.bundle).provenance
    assert provenance["commit"] == git_revision(Path.cwd())
    text = _card(result.bundle)
    for told in (f"`{result.env_steps}`", '"seed": 5', "observation space: `{", f'GPTPolicy("{result.bundle}")'):
        assert told in text, told
    data = ModelCard(text).data
    assert data.library_name == "agentgpt-remote"
    assert "reinforcement-learning" in data.tags
    (told_return,) = data.eval_results
    assert told_return.metric_value == provenance["episode_return"]


def test_card_tells_an_evaluation_before_the_training_return(tmp_path: Path) -> None:
    _saved(tmp_path, env_id="CartPole-v1", source="CartPole-v1", episode_return=123.0)
    note_evaluation(tmp_path, {**EVALUATION, "max": 500.0, "episode_length": 481.5})
    text = _card(tmp_path)
    (result,) = ModelCard(text).data.eval_results
    assert (result.metric_value, result.dataset_name, result.metric_type) == (481.5, "CartPole-v1", "mean_reward")
    assert "quantiles: min 470.00, 25 % 479.00, 50 % 482.00, 75 % 484.00, max 500.00" in text
    assert "mean 481.50, standard deviation 3.25" in text
    assert load_bundle(tmp_path).provenance["evaluation"]["mean"] == 481.5


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "high"])
def test_card_without_a_result_has_no_model_index(tmp_path: Path, value: Any) -> None:
    text = _saved(tmp_path, env_id="CartPole-v1", episode_return=value)
    assert ModelCard(text).data.eval_results is None
    assert "model-index" not in text


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_breaks_out_of_the_card(tmp_path: Path, value: str) -> None:
    text = _saved(
        tmp_path,
        env_id=value,
        source=value,
        episode_return=1.5,
        hyperparameters={"env_id": value, value: value},
        **{value: value},
    )
    header, body = text.removeprefix("---\n").split("\n---\n", 1)
    fields = yaml.safe_load(header)
    assert set(fields) == {"library_name", "tags", "model-index"}
    assert fields["model-index"][0]["results"][0]["metrics"][0]["value"] == 1.5
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        next(line for line in body.splitlines() if line.startswith("# A GPT policy for ")),
        *("## Spaces", "## Training", "## Hyperparameters"),
    ]
    outside = _without_code(body)
    assert "<script" not in outside
    assert "](javascript" not in outside
    assert "\x1b" not in text


def _without_code(markdown: str) -> str:
    """Return what a Markdown reader takes for text: outside of fences and spans of code."""
    kept, fence = [], ""
    for line in markdown.splitlines():
        ticks = line[: len(line) - len(line.lstrip("`"))]
        if fence:
            fence = "" if len(ticks) >= len(fence) and line.strip("`") == "" else fence
        elif len(ticks) >= 3:
            fence = ticks
        else:
            kept.append(line)
    assert not fence, "a fence is never closed"
    # A span of the lines here is the last thing in its line.
    return "\n".join(line.replace("\\<", "").replace("\\]", "").partition(": `")[0] for line in kept)


def test_bundle_never_holds_a_secret(tmp_path: Path) -> None:
    url = f"wss://me:{SECRET}@sim-7:8443/{SECRET}?token={SECRET}#{SECRET}"
    hyperparameters = Hyperparameters(
        env_hosts={
            f"sim-7:8443/{SECRET}": EnvHost(env_endpoint=url),
            "again": EnvHost(env_endpoint="wss://sim-7:8443"),
        },
        env_kwargs={"api_key": SECRET, "nested": {"Password": SECRET, "level": 3}, "url": f"http://me:{SECRET}@db/x"},
    )
    text = _saved(
        tmp_path, source=f"{url}, ws://sim-8:8000/{SECRET}", token=SECRET, hyperparameters=hyperparameters.to_dict()
    )
    config = (tmp_path / "config.json").read_text()
    assert SECRET not in text
    assert SECRET not in config
    told = load_bundle(tmp_path).provenance
    assert told["source"] == "wss://sim-7:8443, ws://sim-8:8000"
    assert told["hyperparameters"]["env_kwargs"] == {
        "api_key": HIDDEN,
        "nested": {"Password": HIDDEN, "level": 3},
        "url": "http://db/x",
    }
    assert list(told["hyperparameters"]["env_hosts"]) == ["sim-7:8443", "sim-7:8443 (2)"]


def test_no_hyperparameter_of_its_own_is_taken_for_a_secret(tmp_path: Path) -> None:
    _saved(tmp_path, hyperparameters=Hyperparameters().to_dict())
    assert HIDDEN not in json.dumps(load_bundle(tmp_path).provenance)


def test_revision_is_that_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision(tmp_path) is None
    assert git_revision(tmp_path / "missing") is None

    def git(*words: str) -> str:
        names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *names, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    assert git_revision(tmp_path) is None, "there is no commit yet"
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "First")
    git("tag", "v1")
    assert git_revision(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert git_revision(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(tmp_path) is None, "there is no git"
