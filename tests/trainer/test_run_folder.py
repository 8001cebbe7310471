from __future__ import annotations

from pathlib import Path

import pytest

from agentgpt_remote.errors import ConfigError, RunExists
from agentgpt_remote.trainer.run_folder import CONFIG_NAME, prepare_run_folder, read_json, write_json


def test_existing_run_is_refused_unless_resumed_or_replaced(tmp_path: Path) -> None:
    run = tmp_path / "a"
    prepare_run_folder(run)
    write_json(run / CONFIG_NAME, {"x": 1})
    with pytest.raises(RunExists, match="--resume"):
        prepare_run_folder(run)
    prepare_run_folder(run, resume=True)
    assert read_json(run / CONFIG_NAME) == {"x": 1}
    prepare_run_folder(run, force=True)
    assert read_json(run / CONFIG_NAME) == {"x": 1}, "the run is replaced when the new one begins, not before"


def test_force_does_not_delete_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not a run"):
        prepare_run_folder(tmp_path, force=True)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run to resume"):
        prepare_run_folder(tmp_path / "none", resume=True)


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json"):
        read_json(tmp_path / "config.json")
