"""``agentgpt play``: watch a policy act."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from agentgpt_remote.cli.options import ClientToken, Json, is_url


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    app.command()(play)


def play(
    bundle: Annotated[str, typer.Argument(help="Folder of a policy bundle, hf://OWNER/NAME, or the URL of a server.")],
    env: Annotated[
        str | None, typer.Option(metavar="SOURCE_OR_URL", help="Environment; by default what it was trained on.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 1,
    video: Annotated[
        Path | None,
        typer.Option(help="File to write (.mp4, .gif), or a folder for a file per episode; without it a window opens."),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second; by default what the environment says.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic/--sampled", help="Take the likeliest actions, or sample them.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode and of sampling.")] = 0,
    max_steps: Annotated[int, typer.Option(min=1, help="Steps after which an episode is ended.")] = 10_000,
    token: ClientToken = None,
    as_json: Json = False,
) -> None:
    """Show a policy in a window, or write a video of it; closing the window or Ctrl-C ends it."""
    from agentgpt_remote import GPTPolicy
    from agentgpt_remote.trainer import playing

    source, env_kwargs = (env, {}) if env is not None else playing.trained_on(bundle)
    policy_token = token if is_url(bundle) else None
    shown = []
    playing.screens(video, fps=30 if fps is None else fps, title="")  # a wrong option is told before anything is opened
    with (
        GPTPolicy(bundle, deterministic=deterministic, seed=seed, token=policy_token) as policy,
        playing.Stage(source, token=token, env_kwargs=env_kwargs) as stage,
    ):
        open_screen, one_screen = playing.screens(
            video, fps=stage.fps if fps is None else fps, title=f"{bundle} in {source}"
        )
        for episode in playing.play(
            policy, stage, open_screen, episodes=episodes, seed=seed, max_steps=max_steps, one_screen=one_screen
        ):
            shown.append(episode)
            if not as_json:
                print(
                    f"seed {episode.seed}: return {episode.episode_return:.2f} in {episode.episode_length} steps "
                    f"({episode.ended})",
                    flush=True,
                )
    if as_json:
        print(json.dumps([episode.to_dict() for episode in shown]))
        return
    for name in dict.fromkeys(episode.video for episode in shown if episode.video):
        print(f"wrote {name}")
