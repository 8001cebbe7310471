"""Policies that are watched: real video files that are read back, a window, and what can't be shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from PIL import Image, ImageSequence

from agentgpt_remote.errors import BundleError, ConfigError, RenderError
from agentgpt_remote.policy.bundle import save_bundle
from agentgpt_remote.screens import VideoFile, Window, as_frame
from agentgpt_remote.trainer.playing import Stage, play, screens, trained_on
from tests.policy.conftest import make_model
from tests.trainer.shown_envs import HEIGHT, LENGTH, WIDTH

SHOWN = "tests.trainer.shown_envs:"
BRIGHT = [40 * step for step in range(LENGTH + 1)]


class One:
    """A policy that takes action 1, or what a mask allows, and notes what it is asked."""

    def __init__(self) -> None:
        self.resets, self.masks = 0, []

    def reset(self) -> None:
        self.resets += 1

    def __call__(self, observation: Any, *, action_mask: Any = None) -> int:
        assert observation.shape == (4,)
        self.masks.append(action_mask)
        return 1


def _play(source: str, video: Path | None, **options: Any) -> list[Any]:
    with Stage(source, env_kwargs=options.pop("env_kwargs", None)) as stage:
        open_screen, one_screen = screens(video, fps=options.pop("fps", stage.fps), title="a test")
        policy = options.pop("policy", None) or One()
        return list(play(policy, stage, open_screen, one_screen=one_screen, **options))


def _mp4(path: Path) -> tuple[tuple[int, int], float, list[int]]:
    """Return the size of a file's frames, how many there are per second, and how bright each is."""
    words = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(words, capture_output=True, timeout=60, check=True)
    told = re.search(r"Video: .*?, (\d+)x(\d+).*?, ([\d.]+) fps", done.stderr.decode())
    assert told is not None
    width, height = int(told[1]), int(told[2])
    images = np.frombuffer(done.stdout, np.uint8).reshape(-1, height * width * 3)
    return (width, height), float(told[3]), images.mean(axis=1).round().tolist()


def test_episodes_are_one_mp4_with_every_frame(tmp_path: Path) -> None:
    policy = One()
    played = _play(SHOWN + "Shown", tmp_path / "new" / "shown.mp4", episodes=2, seed=3, policy=policy)
    assert [(item.seed, item.episode_return, item.episode_length, item.ended) for item in played] == [
        (3, 5.0, LENGTH, "terminated"),
        (4, 5.0, LENGTH, "terminated"),
    ]
    size, fps, brightness = _mp4(tmp_path / "new" / "shown.mp4")
    assert size == (WIDTH + 1, HEIGHT + 1), "odd sizes are padded"
    assert fps == 10
    assert np.allclose(brightness, [*BRIGHT, *BRIGHT], atol=4)
    assert policy.resets == 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["shown.mp4"]


def test_gif_holds_every_frame(tmp_path: Path) -> None:
    _play(SHOWN + "Shown", tmp_path / "shown.gif", fps=20)
    with Image.open(tmp_path / "shown.gif") as image:
        assert image.size == (WIDTH, HEIGHT)
        assert image.info["duration"] == 50
        frames = [np.asarray(frame.convert("RGB")).mean() for frame in ImageSequence.Iterator(image)]
    assert np.allclose(frames, BRIGHT, atol=4)


def test_folder_gets_a_file_per_episode(tmp_path: Path) -> None:
    names = [played.video for played in _play(SHOWN + "Shown", tmp_path / "videos", episodes=2)]
    assert names == [str(tmp_path / "videos" / f"episode-00{index}.mp4") for index in range(2)]
    for name in names:
        assert np.allclose(_mp4(Path(name))[-1], BRIGHT, atol=4)


def test_masks_reach_the_policy(tmp_path: Path) -> None:
    policy = One()
    _play(SHOWN + "Shown", tmp_path / "x.mp4", policy=policy, env_kwargs={"masked": True})
    assert all(mask.tolist() == [0, 1] for mask in policy.masks)


def test_episode_without_an_end_is_ended(tmp_path: Path) -> None:
    (played,) = _play(SHOWN + "Endless", tmp_path / "x.mp4", max_steps=7)
    assert (played.ended, played.episode_length) == ("limit", 7)
    assert len(_mp4(tmp_path / "x.mp4")[-1]) == 8


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("HumanOnly", r"HumanOnly can't be shown: expected the render mode 'rgb_array', it has none.*--env"),
        ("no_render_mode", r"no_render_mode can't be shown: .*its constructor takes no render_mode.*--env"),
        ("Growing", r"a frame has the shape \(36, 49, 3\), expected \(35, 49, 3\)"),
        ("Floats", r"rendered an array of shape \(35, 49, 3\) and dtype float64: expected a uint8 array"),
    ],
)
def test_what_can_not_be_shown_is_named_and_leaves_no_file(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        _play(SHOWN + source, tmp_path / "x.mp4")
    assert list(tmp_path.iterdir()) == []


def test_window_shows_episodes_and_ends_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    (played,) = _play(SHOWN + "Shown", None, fps=1000)
    assert (played.ended, played.video) == ("terminated", None)
    import pygame

    class Closing(One):
        def __call__(self, observation: Any, *, action_mask: Any = None) -> int:
            if len(self.masks) == 2:
                pygame.event.post(pygame.event.Event(pygame.QUIT))
            return super().__call__(observation, action_mask=action_mask)

    (closed,) = _play(SHOWN + "Shown", None, fps=1000, policy=Closing(), episodes=3)
    assert (closed.ended, closed.episode_length) == ("closed", 3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other desktops always have a display")
def test_machine_without_a_display_is_told_to_write_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RenderError, match=r"DISPLAY and WAYLAND_DISPLAY are not set.*--video episode\.mp4"):
        Window(fps=30, title="x")
    monkeypatch.setenv("SDL_VIDEODRIVER", "no-such-driver")
    with pytest.raises(RenderError, match=r"there is no display \(.*--video"):
        Window(fps=30, title="x")


@pytest.mark.parametrize("module", ["imageio_ffmpeg", "pygame"])
def test_missing_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.raises(
        DependencyNotInstalled, match=rf'{module} is not installed: .*pip install "agentgpt-remote\[video\]"'
    ):
        VideoFile(tmp_path / "x.mp4", fps=30) if module == "imageio_ffmpeg" else Window(fps=30, title="x")


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_wrong_fps_is_refused(fps: float) -> None:
    with pytest.raises(ConfigError, match="fps="):
        screens(None, fps=fps, title="x")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.avi: expected a file that ends in \.mp4 or \.gif, or a folder"):
        screens(tmp_path / "x.avi", fps=30, title="x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        VideoFile(tmp_path / "file" / "x.mp4", fps=30)


def test_gray_and_transparent_frames_become_colour() -> None:
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for array in (gray, gray[..., None], np.stack([gray] * 4, axis=2)):
        assert np.array_equal(as_frame(array, "x"), np.stack([gray] * 3, axis=2))
    for wrong in (None, "text", [gray], np.zeros((2, 3, 2), np.uint8), np.zeros((0, 3, 3), np.uint8)):
        with pytest.raises(RenderError, match=r"x rendered .*expected a uint8 array"):
            as_frame(wrong, "x")


def test_bundle_tells_what_it_was_trained_on(tmp_path: Path) -> None:
    def told(**provenance: Any) -> tuple[str, dict[str, Any]]:
        save_bundle(tmp_path, make_model("cartpole"), provenance=provenance)
        return trained_on(str(tmp_path))

    given = {"env_id": "LunarLander-v3", "env_kwargs": {"gravity": -9.0}, "env_hosts": {}}
    assert told(source="LunarLander-v3", hyperparameters=given) == ("LunarLander-v3", {"gravity": -9.0})
    assert told(source="ws://sim-7:8000", hyperparameters={"env_id": None}) == ("ws://sim-7:8000", {})
    for source in ("ws://a:1, ws://b:1", None):
        with pytest.raises(ConfigError, match="name one environment to play in with --env"):
            told(source=source)
    with pytest.raises(ConfigError, match=r"arguments that it does not tell.*api_key.*--env"):
        told(source="x", hyperparameters={"env_id": "x", "env_kwargs": {"api_key": "y"}})
    with pytest.raises(ConfigError, match="--env SOURCE"):
        trained_on("ws://127.0.0.1:9")
    with pytest.raises(BundleError, match="no policy bundle"):
        trained_on(str(tmp_path / "nowhere"))
