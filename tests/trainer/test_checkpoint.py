from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.trainer.checkpoint import Checkpoints


def test_last_is_loaded_and_old_ones_are_dropped(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.load_last() is None
    for steps in (10, 200, 3000):
        checkpoints.save({"weights": {"w": torch.full((2,), float(steps))}}, steps, best=steps == 200)
    assert [path.name for path in checkpoints.paths()] == ["step-000000000200.pt", "step-000000003000.pt"]
    state = checkpoints.load_last()
    assert state is not None
    assert state["env_steps"] == 3000
    assert state["weights"]["w"].tolist() == [3000.0, 3000.0]
    assert torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)["env_steps"] == 200


def test_leftover_of_a_crash_is_ignored_and_removed(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=3).save({"x": 1}, 5)
    (tmp_path / "step-000000000009.tmp").write_bytes(b"half")
    state = Checkpoints(tmp_path, keep=3).load_last()
    assert state is not None
    assert state["env_steps"] == 5
    assert not list(tmp_path.glob("*.tmp"))


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    path = checkpoints.save({"x": torch.zeros(1000)}, 5)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TrainingFailed, match=r"step-000000000005.pt"):
        checkpoints.load_last()


def test_full_disk_leaves_the_previous_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save({"x": 1}, 5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agentgpt_remote.trainer.checkpoint.os.fsync", full)
    with pytest.raises(TrainingFailed, match="No space left"):
        checkpoints.save({"x": 2}, 6)
    state = checkpoints.load_last()
    assert state is not None
    assert state["x"] == 1
    assert not list(tmp_path.glob("*.tmp"))
