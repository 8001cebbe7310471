"""Where frames of an environment go: a window, or a video file that is whole or absent."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.errors import ConfigError, RenderError, missing_dependency

VIDEO_SUFFIXES = (".mp4", ".gif")
_FFMPEG_TIMEOUT_S = 60.0
_MAX_GIF_FPS = 50.0  # what viewers of GIFs show at most
_PALETTE = "[0:v]split[a][b];[a]palettegen[p];[b][p]paletteuse"
_DISPLAY_VARIABLES = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


class Screen(Protocol):
    """Takes frames, one after another."""

    def show(self, frame: NDArray[np.uint8]) -> bool:
        """Show a frame of shape (height, width, 3); return whether more are wanted."""

    def close(self) -> None:
        """Finish; a second call does nothing."""

    def abandon(self) -> None:
        """Finish, and leave nothing behind that is not whole."""


def as_frame(rendered: Any, env_name: str) -> NDArray[np.uint8]:
    """Return what an environment rendered as an array of shape (height, width, 3).

    Args:
        rendered: uint8 array of shape (height, width), or (height, width, channels) with 1, 3 or 4 of them.
        env_name: of the environment, for errors.

    Raises:
        RenderError: it is something else.
    """
    array = np.asarray(rendered) if isinstance(rendered, np.ndarray) else None
    if array is not None and array.ndim == 2:
        array = array[..., None]
    if array is None or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        found = type(rendered).__name__ if array is None else f"an array of shape {array.shape} and dtype {array.dtype}"
        raise RenderError(
            f"{env_name} rendered {found}: expected a uint8 array of shape (height, width, 3) from "
            'render_mode="rgb_array"'
        )
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]


class Window:
    """A window of this machine's desktop.

    Args:
        fps: frames per second.
        title: of the window.

    Raises:
        RenderError: there is no display.
        DependencyNotInstalled: pygame is not installed; holds the command to type.
    """

    def __init__(self, *, fps: float, title: str) -> None:
        if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in _DISPLAY_VARIABLES):
            raise _no_display("DISPLAY and WAYLAND_DISPLAY are not set")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import pygame
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error
        self._pygame: Any = pygame
        try:
            pygame.display.init()
        except pygame.error as error:
            raise _no_display(str(error)) from error
        pygame.display.set_caption(title)
        self._fps, self._clock = fps, pygame.time.Clock()
        self._surface: Any = None

    def show(self, frame: NDArray[np.uint8]) -> bool:
        """Draw a frame when its time has come; return False once the window was closed."""
        pygame, size = self._pygame, (frame.shape[1], frame.shape[0])
        try:
            if self._surface is None or self._surface.get_size() != size:
                self._surface = pygame.display.set_mode(size)
            self._surface.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
            self._clock.tick(self._fps)
            pygame.display.flip()
        except pygame.error as error:
            raise _no_display(str(error)) from error
        return not any(event.type == pygame.QUIT for event in pygame.event.get())

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()

    def abandon(self) -> None:
        """Close the window."""
        self.close()


def _no_display(reason: str) -> RenderError:
    return RenderError(
        f"can't open a window: there is no display ({reason}); write a file instead: --video episode.mp4"
    )


class VideoFile:
    """A video file, written while frames arrive, that takes its name when it is whole.

    Args:
        path: ends in ``.mp4`` or ``.gif``.
        fps: frames per second.

    Raises:
        ConfigError: the file is of another kind, or can't be written there.
        DependencyNotInstalled: imageio-ffmpeg is not installed; holds the command to type.
    """

    def __init__(self, path: Path, *, fps: float) -> None:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ConfigError(f"video {str(path)!r}: expected a file that ends in {' or '.join(VIDEO_SUFFIXES)}")
        try:
            import imageio_ffmpeg
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error
        self._writer: Any = imageio_ffmpeg
        self._path, self._is_gif = path, path.suffix.lower() == ".gif"
        self._fps = min(fps, _MAX_GIF_FPS) if self._is_gif else fps
        # ffmpeg takes the kind of file from the name's end.
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix.lower()}")
        self._frames: Generator[None, Any, None] | None = None
        self._shape: tuple[int, ...] = ()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._part.touch()
        except OSError as error:
            raise ConfigError(f"video {str(path)!r} can't be written ({error}): name another file") from error

    def show(self, frame: NDArray[np.uint8]) -> bool:
        """Append a frame.

        Raises:
            RenderError: it is of another size than those before, or ffmpeg failed.
        """
        if self._frames is None:
            self._shape = frame.shape
            self._frames = self._open()
        if frame.shape != self._shape:
            raise RenderError(f"{self._path}: a frame has the shape {frame.shape}, expected {self._shape} as before")
        height, width = frame.shape[:2]
        if not self._is_gif:  # the format that every player shows needs even sizes
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            self._frames.send(np.ascontiguousarray(frame))
        except OSError as error:
            raise RenderError(f"ffmpeg could not write {self._path}: {str(error).strip()}") from error
        return True

    def _open(self) -> Generator[None, Any, None]:
        height, width = self._shape[:2]
        if self._is_gif:
            options = {"codec": "gif", "pix_fmt_out": "pal8", "output_params": ["-filter_complex", _PALETTE]}
        else:
            height, width = height + height % 2, width + width % 2
            options = {"codec": "libx264", "pix_fmt_out": "yuv420p"}
        frames: Generator[None, Any, None] = self._writer.write_frames(
            str(self._part),
            (width, height),
            fps=self._fps,
            macro_block_size=1,
            ffmpeg_log_level="error",
            ffmpeg_timeout=_FFMPEG_TIMEOUT_S,
            **options,
        )
        frames.send(None)
        return frames

    def close(self) -> None:
        """Finish the file; without a frame there is none.

        Raises:
            RenderError: ffmpeg failed, or did not finish in time.
        """
        if self._frames is None:
            self.abandon()
            return
        frames, self._frames = self._frames, None
        frames.close()
        if not self._part.exists() or not self._part.stat().st_size:
            self.abandon()
            raise RenderError(f"ffmpeg could not write {self._path}: is the disk full, or the size {self._shape} odd?")
        self._part.replace(self._path)

    def abandon(self) -> None:
        """Stop, and remove what was written."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)
