"""Learning curves of several seeds as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.baselines import Curve
from benchmarks.tasks import Goal

_COLOURS = ("tab:blue", "tab:orange")


def write_curves(path: Path, title: str, goal: Goal, curves: Sequence[tuple[str, int, Curve]]) -> None:
    """Draw one line per seed, sides by colour, with the goal as a dashed corner.

    Args:
        path: the PNG; its folder is made.
        title: above the picture.
        goal: the bar, and the steps within which it is to be reached.
        curves: side, seed and the training return over environment steps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sides = list(dict.fromkeys(side for side, _, _ in curves))
    for side, seed, curve in curves:
        index = sides.index(side)
        steps, returns = [step for step, _ in curve], [value for _, value in curve]
        axes.plot(
            steps, returns, color=_COLOURS[index % len(_COLOURS)], alpha=0.8 - 0.3 * index, label=f"{side}, seed {seed}"
        )
    axes.axhline(goal.bar, color="grey", linestyle="--", linewidth=1)
    axes.axvline(goal.within, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="environment steps", ylabel="training return (mean of the last 20 episodes)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)
