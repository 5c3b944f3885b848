"""What all plots share: colours, theme, names without formulas, panels and legends."""

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

DPI = 120  # of the PNG files
SOURCE_COLOUR, TARGET_COLOUR, SAMPLES_COLOUR = "#7f7f7f", "#3b6fb6", "#c2452d"
Log = Callable[[str], None]


def plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def names_of(rows: pd.DataFrame, between: str = " ") -> list[str]:
    """The method and the setting of each row."""
    names = zip(rows["method"], rows["setting"], strict=True)
    return [between.join(filter(None, name)) for name in names]


def labels_of(rows: pd.DataFrame, between: str = " ") -> list[str]:
    """The method and the setting of each row, as they stand in a plot."""
    return [plain(name) for name in names_of(rows, between)]


def colours_of(names: Iterable[str]) -> dict[str, Any]:
    """A colour for every name, the same in all panels of a figure."""
    distinct = sorted(set(names))
    palette = sns.color_palette("muted" if len(distinct) <= 10 else "husl", len(distinct))
    return dict(zip(distinct, palette, strict=True))


def panels_of(
    count: int, columns: int, size: tuple[float, float], gap: float | None = None, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of ``size`` inches with ``count`` panels in rows of ``columns``.

    ``gap`` is in inches, left and right of every panel; ``options`` are those of ``subplots``.
    """
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=gap))
    panels = list(figure.subplots(-(-count // columns), columns, squeeze=False, **options).flat)
    for ax in panels[count:]:
        ax.axis("off")
    return figure, panels[:count]


def legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend beside the panels, with every label once."""
    handles: dict[str, Any] = {}
    for ax in panels:
        found, labels = ax.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
