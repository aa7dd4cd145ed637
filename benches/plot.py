"""The picture of a report: a line for each row, and on it each loop's share of the baseline's cost."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .loops import BASELINE, OURS
from .report import ratio, title
from .results import Result

OURS_COLOUR = "#d9480f"
# Peers stay in the background: quiet colours, and shapes that tell them apart without colour.
PEERS = {
    "asyncio": ("s", "#868e96"),
    "rloop": ("D", "#4c6ef5"),
    "rsloop": ("^", "#37b24d"),
    "veloxloop": ("v", "#9c36b5"),
}


def draw(path: Path, results: Sequence[Result], loops: Sequence[str]) -> None:
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "benches"  # the same results give the same file
    matplotlib.rcParams["font.size"] = 9
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    ticker: Any = importlib.import_module("matplotlib.ticker")

    shown = [result for result in results if result.cost(BASELINE)]
    shown.reverse()  # the first row on top
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.24 * len(shown)), layout="constrained")
    axes.set_xscale("log")
    axes.axvline(1, color="#212529", linewidth=1.2, zorder=1)
    axes.text(1, len(shown) - 0.35, BASELINE, ha="center", va="bottom")

    for loop in loops:
        points = [(share, y) for y, result in enumerate(shown) if (share := ratio(result, loop)) is not None]
        if loop == BASELINE or not points:
            continue
        if loop == OURS:
            # The figures stand in a column at the edge, where no dot can hide them.
            edge = {"transform": axes.get_yaxis_transform(), "color": OURS_COLOUR, "fontweight": "bold"}
            axes.text(1.01, len(shown) - 0.35, OURS, va="bottom", **edge)
            for share, y in points:
                axes.plot([share, 1], [y, y], color=OURS_COLOUR, linewidth=3, alpha=0.35, zorder=2)
                axes.text(1.01, y, f"{share:.2f}", va="center", **edge)
            style = {"marker": "o", "s": 60, "color": OURS_COLOUR, "zorder": 3}
        else:
            marker, colour = PEERS[loop]
            # Small and on top of ours, so that a draw shows both.
            style = {
                "marker": marker,
                "s": 20,
                "color": colour,
                "edgecolor": "white",
                "linewidth": 0.5,
                "zorder": 4,
            }
        axes.scatter([x for x, _ in points], [y for _, y in points], label=loop, **style)

    axes.set_yticks(range(len(shown)), [title(result) for result in shown])
    axes.set_ylim(-0.7, len(shown) - 0.4)
    axes.xaxis.set_major_locator(ticker.FixedLocator([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(axis="x", color="#e9ecef")
    axes.grid(axis="y", color="#f1f3f5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    # Above, where it is read first.
    heading = {
        "title": f"What the same work costs, {BASELINE} = 1: further left is cheaper",
        "title_fontproperties": {"weight": "bold", "size": 11},
    }
    figure.legend(loc="outside upper center", ncols=len(loops), frameon=False, **heading)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    pyplot.close(figure)
