"""Watch a policy act: episodes in a window or in video files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from agentgpt_remote.endpoints import HUB_SCHEME
from agentgpt_remote.errors import BundleError, ConfigError, InvalidArgument, RenderError
from agentgpt_remote.policy.masks import MASK_KEY
from agentgpt_remote.screens import VIDEO_SUFFIXES, Screen, VideoFile, Window, as_frame
from agentgpt_remote.scrubbing import HIDDEN
from agentgpt_remote.wrappers.remote_env import RemoteEnv

RENDER_MODE = "rgb_array"
MAX_STEPS = 10_000
_DEFAULT_FPS = 30.0


@dataclass(frozen=True, kw_only=True)
class PlayedEpisode:
    """An episode that was shown.

    Attributes:
        seed: that the environment was reset with.
        episode_return: sum of its rewards.
        episode_length: steps.
        ended: ``terminated``, ``truncated``, ``limit`` (as many steps as were allowed) or ``closed`` (the window).
        video: file that shows it, or None.
    """

    seed: int
    episode_return: float
    episode_length: int
    ended: str
    video: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


class Stage:
    """An environment that renders, hosted by a process of its own or at a URL.

    Args:
        source: a source such as "CartPole-v1", or a URL.
        token: of the host at the URL.
        env_kwargs: arguments of the environment's constructor.

    Attributes:
        env: the environment.
        name: what it is called in messages.
        fps: frames per second that it asks for.

    Raises:
        RenderError: it has no render mode that makes frames.
        HostUnreachable: nothing listens at the URL.
        RemoteEnvError: the environment could not be made.
    """

    def __init__(self, source: str, *, token: str | None = None, env_kwargs: dict[str, Any] | None = None) -> None:
        self.name = source
        where: dict[str, Any] = {"url": source, "token": token} if "://" in source else {"source": source}
        try:
            self.env = RemoteEnv(**where, render_mode=RENDER_MODE, **(env_kwargs or {}))
        except InvalidArgument as error:
            if "render_mode" not in str(error):
                raise
            raise RenderError(self._lacks("none: its constructor takes no render_mode")) from error
        modes = list(self.env.metadata.get("render_modes") or [])
        if RENDER_MODE not in modes:
            self.env.close()
            raise RenderError(self._lacks(", ".join(map(repr, modes)) or "none"))
        fps = self.env.metadata.get("render_fps")
        self.fps = float(fps) if isinstance(fps, int | float) and 0 < fps < math.inf else _DEFAULT_FPS

    def _lacks(self, modes: str) -> str:
        return (
            f"{self.name} can't be shown: expected the render mode {RENDER_MODE!r}, it has {modes} beside a window of "
            "its own; name another environment with --env, or have its metadata and constructor take "
            f"render_mode={RENDER_MODE!r}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()


def play(
    policy: Any,
    stage: Stage,
    open_screen: Callable[[], tuple[Screen, str | None]],
    *,
    episodes: int = 1,
    seed: int = 0,
    max_steps: int = MAX_STEPS,
    one_screen: bool = True,
) -> Iterator[PlayedEpisode]:
    """Show episodes.

    Args:
        policy: a GPTPolicy.
        stage: where it acts.
        open_screen: returns where the frames go, and the file's name where there is one.
        episodes: how many.
        seed: episode i is reset with ``seed + i``.
        max_steps: of an episode; a longer one ends there.
        one_screen: whether all episodes are on the same screen.

    Yields:
        Each episode as soon as it was shown, and on a screen of its own was written.

    Raises:
        RenderError: the environment renders no frames, or they can't be shown or written.
    """
    screen: Screen | None = None
    name: str | None = None
    try:
        for index in range(episodes):
            if screen is None:
                screen, name = open_screen()
            played = _episode(policy, stage, screen, seed + index, max_steps, name)
            if not one_screen or index == episodes - 1 or played.ended == "closed":
                shown, screen = screen, None
                shown.close()
            yield played
            if played.ended == "closed":
                return
    finally:
        if screen is not None:
            screen.abandon()


def _episode(policy: Any, stage: Stage, screen: Screen, seed: int, max_steps: int, video: str | None) -> PlayedEpisode:
    env = stage.env
    policy.reset()
    observation, info = env.reset(seed=seed)
    total, steps, ended = 0.0, 0, ""
    while True:
        if not screen.show(as_frame(env.render(), stage.name)):
            ended = ended or "closed"
        if ended:
            break
        action = policy(observation, action_mask=info.get(MASK_KEY))
        observation, reward, terminated, truncated, info = env.step(action)
        total, steps = total + float(reward), steps + 1
        if terminated or truncated:
            ended = "terminated" if terminated else "truncated"
        elif steps >= max_steps:
            ended = "limit"
    return PlayedEpisode(seed=seed, episode_return=total, episode_length=steps, ended=ended, video=video)


def screens(video: Path | None, *, fps: float, title: str) -> tuple[Callable[[], tuple[Screen, str | None]], bool]:
    """Return what opens a screen, and whether one is for all episodes.

    Args:
        video: a file for all episodes, a folder that gets a file for each, or None for a window.
        fps: frames per second.
        title: of a window.

    Raises:
        ConfigError: ``fps`` is out of range, or the file is of an unknown kind.
    """
    if not 0 < fps <= 1000:
        raise ConfigError(f"fps={fps:g} is out of range: expected more than 0, at most 1000")
    if video is None:
        return (lambda: (Window(fps=fps, title=title), None)), True
    if video.suffix and not video.is_dir():
        if video.suffix.lower() not in VIDEO_SUFFIXES:
            raise ConfigError(
                f"--video {video}: expected a file that ends in {' or '.join(VIDEO_SUFFIXES)}, or a folder's name"
            )
        return (lambda: (VideoFile(video, fps=fps), str(video))), True
    numbers = iter(range(10**6))

    def next_file() -> tuple[Screen, str | None]:
        path = video / f"episode-{next(numbers):03d}.mp4"
        return VideoFile(path, fps=fps), str(path)

    return next_file, False


def trained_on(bundle: str) -> tuple[str, dict[str, Any]]:
    """Return the environment that a bundle was trained on, and the arguments of its constructor.

    Raises:
        ConfigError: the bundle does not tell, or lacks arguments that were secret.
    """
    from agentgpt_remote.policy.bundle_files import read_bundle
    from agentgpt_remote.policy.hub import local_bundle

    try:
        provenance = read_bundle(local_bundle(bundle)).provenance
    except BundleError:
        if bundle.endswith(".onnx") or ("://" in bundle and not bundle.startswith(HUB_SCHEME)):
            raise ConfigError(f"{bundle} does not tell what it was trained on: name it with --env SOURCE") from None
        raise
    given = provenance.get("hyperparameters")
    hyperparameters = given if isinstance(given, dict) else {}
    source = hyperparameters.get("env_id") or provenance.get("source")
    if not isinstance(source, str) or not source or ", " in source:
        raise ConfigError(f"{bundle} was trained on {source!r}: name one environment to play in with --env SOURCE")
    env_kwargs = dict(hyperparameters.get("env_kwargs") or {})
    if HIDDEN in str(env_kwargs):
        raise ConfigError(
            f"{bundle} was trained on {source} with arguments that it does not tell, since they are secret "
            f"({', '.join(env_kwargs)}): name an environment that has them with --env module:factory"
        )
    return source, env_kwargs
