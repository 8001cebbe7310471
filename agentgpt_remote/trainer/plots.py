"""The learning curve as a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from agentgpt_remote.files import replacing
from agentgpt_remote.metrics import read_metrics


def write_learning_curve(run_dir: Path, title: str) -> Path | None:
    """Draw the training return over environment steps into ``learning_curve.png``.

    Returns:
        The picture's path; None where matplotlib is not installed or no episode has ended yet.
    """
    rows = [row for row in read_metrics(run_dir / "metrics.jsonl") if row.get("rollout/episode_return") is not None]
    if not rows or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps = [row["env_steps"] for row in rows]
    axes.plot(steps, [row["rollout/episode_return"] for row in rows], color="tab:blue", linewidth=1.5)
    axes.set(xlabel="environment steps", ylabel="episode return (mean of the last 20)", title=title)
    axes.grid(alpha=0.3)
    path = run_dir / "learning_curve.png"
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
