"""A run's losses as a picture, for a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_studio.library.together import curve
from lora_studio.runs.history import History

SIZE_IN = (8.0, 3.6)
DPI = 120


def draw_curves(history: History, file: Path) -> bool:
    """Write the losses of a run as a PNG; return False where there is none to draw.

    Args:
        history: With what was measured at each step.
        file: Where to.
    """
    found = curve(history)
    lines = {"training": found.train, "held out": found.held_out}
    if not any(lines.values()):
        return False
    # Without pyplot there is no window system, and no state that threads share.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_IN, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    looks: dict[str, dict[str, Any]] = {
        "training": {"linewidth": 1.2},
        "held out": {"marker": "o", "markersize": 4},
    }
    for name, line in lines.items():
        if line:
            axes.plot(*zip(*line, strict=True), label=name, **looks[name])
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(file, format="png", metadata={"Software": None})
    return True
