"""Pictures of the field of two-dimensional cells: its lines from plate to plate, and a slice.

Drawn from the record and the model of a cell. Where the method learns a field that has an exact
counterpart, the exact one stands below.
"""

import textwrap
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import nn

from bench.cell.draws import build_model, generator
from bench.cell.stored import Array, read_model, reason_of, recorded_cell
from bench.config.cell import Cell
from bench.report.plots.style import SAMPLES_COLOUR, SOURCE_COLOUR, TARGET_COLOUR, Log, plain
from bench.store.folder import MODEL, RECORD, cell_folder, file_name
from bench.store.records import read_record
from datasets import TASKS, Distribution
from methods import METHODS, Method
from methods.base import Field, FieldPicture

MAX_FIELDS = 12  # figures of fields in a run
LINES = 60
SHOWN = 400  # samples of each plate in the 3D view
TICKS = 1000  # samples of each plate of which those near the slice are shown
NEAR = 0.03  # their distance from the slice, in widths of the picture
MAX_STEPS, MIN_TOLERANCE = 200, 1e-5  # lines of a picture are integrated no finer than this
STATES = 400  # points of a line that are drawn, at least
ROWS, COLUMNS = 41, 81  # grid of the slice
START_COLOUR, STREAM_COLOUR = "black", "#5b7083"
BETWEEN_COLOUR, BEHIND_COLOUR = "#2a7f62", "#d98c1f"


class Frame(NamedTuple):
    """What the rows of a figure share: the part of space that they show, and the plates in it."""

    low: Array  # (3,): x_1, x_2, z
    high: Array  # (3,)
    plates: list[tuple[float, Array, str]]  # height, samples (TICKS, 2), colour
    picture: FieldPicture

    def holds(self, points: Array) -> NDArray[np.bool_]:
        """Whether points (..., 3) are inside."""
        return np.asarray(((points >= self.low) & (points <= self.high)).all(-1))


def field_figures(
    done: pd.DataFrame, out: Path, log: Log, most: int = MAX_FIELDS
) -> Iterator[tuple[str, Figure]]:
    """File name and figure of the field of each task, method and value of its picture settings.

    Of each the first cell of the lowest seed is drawn, and at most ``most`` in all: the
    first of every task and method, then the second of each, and so on. ``log`` is called with a
    line about what is not drawn.
    """
    flat = done["task"].isin([name for name, task in TASKS.items() if task.dim == 2])
    drawn = done["method"].isin([name for name, kind in METHODS.items() if kind.picture_settings])
    rows = done[flat & drawn].sort_values("seed", kind="stable")
    names = [_name(row) for row in rows.to_dict("records")]
    rows = rows.assign(name=names).drop_duplicates("name").sort_index()
    turn = rows.groupby(["task", "method"]).cumcount()
    chosen = rows.loc[turn.sort_values(kind="stable").index[:most]].sort_index()
    if len(chosen) < len(rows):
        words = f"fields of {len(chosen)} settings are drawn, {len(rows) - len(chosen):,} are not"
        log(f"{words} (python -m bench.report {out} --fields {len(rows)} draws them)")
    for row in chosen.to_dict("records"):
        name = file_name("field", row["name"])
        try:
            figure = field_figure(cell_folder(out, row["id"]), row["setting"])
        except Exception as error:  # files, methods and tasks of another time may raise anything
            log(f"{name}: not drawn: {reason_of(error)}")
        else:
            yield name, figure


def _name(row: dict[Hashable, Any]) -> str:
    """``gaussian_to_moons_efm_L6_forward``: a number has the name of its setting."""
    words = [row["task"], row["method"]]
    for name in METHODS[row["method"]].picture_settings:
        if pd.notna(value := row.get(name)):
            number = f"{name}{value}".removesuffix(".0")
            words.append(value if isinstance(value, str) else number)
    return "_".join(words)


def field_figure(folder: Path, setting: str = "") -> Figure:
    """The learned field of a cell over the exact one; of an untrained method its field alone.

    ``setting`` says in words what distinguishes the cell from others of its task and method.

    Raises:
        ValueError: a record or model that is missing, unreadable or not of the current code.
    """
    context = recorded_cell(read_record(folder / RECORD))
    cell, method, source = context.cell, context.method, context.source
    picture = method.picture(context.target.dim)
    if picture is None:
        raise ValueError(f"{method.name} has no picture with these settings")
    model = read_model(folder / MODEL, context)
    shown = [("learned field" if method.trained else "exact field", method, model)]
    if (exact := picture.exact) is not None:
        kind = f"exact field of {exact.samples:,} charges a plate"
        shown.append((kind, exact, build_model(context, exact)))
    frame = _frame(cell, picture, source, context.target)
    size = 12.5, 4.6 * len(shown) + 0.9
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.15))
    grid = figure.add_gridspec(len(shown), 2, width_ratios=[1.15, 1])
    for row, (kind, drawn, network) in enumerate(shown):
        path, lost = _lines(cell, drawn, network, source)
        if (field := drawn.field(network)) is None:
            raise ValueError(f"{drawn.name} has no field with these settings")
        _draw_lines(figure.add_subplot(grid[row, 0], projection="3d"), kind, path, lost, frame)
        _draw_slice(figure.add_subplot(grid[row, 1]), kind, field, frame)
    title = f"{context.task.title}: {method.title} ({method.name}), seed {cell.seed}"
    figure.suptitle(f"{title}\n{_words(cell, method, setting)}", fontsize=9)
    figure.legend(handles=_legend(picture), loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _frame(cell: Cell, picture: FieldPicture, source: Distribution, target: Distribution) -> Frame:
    """The samples, and half of L to every side, where lines bulge in two dimensions."""
    distance = picture.plate_distance
    rng = generator(cell, "picture")
    below, above = (one.low_variance(TICKS, rng).double().numpy() for one in (source, target))
    points = np.concatenate([below, above])
    centre, extent = (points.max(0) + points.min(0)) / 2, points.max(0) - points.min(0)
    half = max(0.6 * extent.max(), distance / 2)
    margin = distance / 2 if picture.behind else 0.03 * distance
    low, high = np.append(centre - half, -margin), np.append(centre + half, distance + margin)
    plates = [(0.0, below, SOURCE_COLOUR), (distance, above, TARGET_COLOUR)]
    return Frame(low, high, plates, picture)


def _lines(cell: Cell, method: Method, model: nn.Module, source: Distribution) -> tuple[Array, int]:
    """Lines (T+1, B, 3) from the same source samples for every field, and how many were lost."""
    coarse: dict[str, float] = {"solver_steps": min(cell.sample.solver_steps, MAX_STEPS)}
    coarse |= {name: max(getattr(cell.sample, name), MIN_TOLERANCE) for name in ("rtol", "atol")}
    solver = cell.sample.model_copy(update=coarse)
    rng = generator(cell, "lines of the picture")
    x0 = source.low_variance(LINES, rng)
    # In their own order, even samples and the even random numbers of a transport go together.
    x0 = x0[torch.randperm(len(x0), generator=rng)]
    with torch.no_grad():
        transport = method.transport(model, method.start(x0), solver, path=True, rng=rng)
    if transport.path is None or transport.heights is None:
        raise ValueError(f"{method.name} does not say where its lines run")
    path = torch.cat([transport.path, transport.heights[..., None]], dim=2).double().numpy()
    return np.where(np.isfinite(path), path, np.nan), int((~transport.landed).sum())


def _words(cell: Cell, method: Method, setting: str) -> str:
    """Every hyperparameter that applies, and what else distinguishes the cell from others."""
    settings = cell.hyperparameters
    order = dict.fromkeys([*method.picture_settings, *method.named_settings, *settings])
    known = {key: value for key in order if (value := settings.get(key)) is not None}
    words = [f"{key} = {f'{v:g}' if isinstance(v, float) else v}" for key, v in known.items()]
    others = [word.partition("=") for word in setting.split(", ") if word]
    words += [f"{key} = {value}" for key, _, value in others if key not in settings]
    return plain(textwrap.fill(", ".join(word.replace(" ", "\u00a0") for word in words), 130))


def _legend(picture: FieldPicture) -> list[Line2D]:
    dots = {"source": SOURCE_COLOUR, "target": TARGET_COLOUR}
    dots |= {"starts of lines": START_COLOUR, "ends of lines": SAMPLES_COLOUR}
    lines = {"line between the plates": BETWEEN_COLOUR}
    if picture.behind:
        lines["line that runs behind a plate"] = BEHIND_COLOUR
    marks = [Line2D([], [], color=c, label=n, marker="o", ls="", ms=4) for n, c in dots.items()]
    return marks + [Line2D([], [], color=c, label=n) for n, c in lines.items()]


def _draw_lines(ax: Axes3D, title: str, path: Array, lost: int, frame: Frame) -> None:
    """The 3D view: z from left to right, x_1 upward, x_2 into the depth."""
    z = path[..., 2] / frame.picture.plate_distance
    behind: NDArray[np.bool_] = np.any((z < -1e-2) | (z > 1.01), axis=0)
    shown = inside(path, frame)
    for k, colour in enumerate(np.where(behind, BEHIND_COLOUR, BETWEEN_COLOUR)):
        ax.plot(shown[:, k, 2], shown[:, k, 1], shown[:, k, 0], color=colour, lw=0.8, alpha=0.8)
    (left, near, bottom), (right, far, top) = frame.low, frame.high
    corners = np.meshgrid([near, far], [left, right])
    for height, samples, colour in frame.plates:
        x_1, x_2 = samples[:SHOWN].T
        ax.scatter(np.full(len(x_1), height), x_2, x_1, s=3, alpha=0.25, color=colour)
        look = {"color": colour, "edgecolor": colour, "alpha": 0.08, "shade": False}
        ax.plot_surface(np.full((2, 2), height), corners[0], corners[1], **look)
    for ends, colour in ((path[0], START_COLOUR), (path[-1], SAMPLES_COLOUR)):
        x_1, x_2, z = ends[frame.holds(ends)].T
        ax.scatter(z, x_2, x_1, s=8, color=colour, depthshade=False)
    ax.set(xlabel="z", ylabel="$x_2$", zlabel="$x_1$")
    ax.set(xlim=(bottom, top), ylim=(near, far), zlim=(left, right))
    ax.set_box_aspect((np.clip((top - bottom) / (right - left), 1.5, 2.5), 1, 1), zoom=1.15)
    ax.view_init(elev=16, azim=-72)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    words = f"{title}: {len(behind)} lines, cut at the frame"
    words += f"; {behind.sum()} run behind a plate" if frame.picture.behind else ""
    ax.set_title(f"{words}; {lost} lost" if lost else words, fontsize=9)


def inside(path: Array, frame: Frame) -> Array:
    """The lines (T+1, B, 3) inside the frame, at least ``STATES`` points each, NaN outside.

    A segment with both ends outside is left out even if it crosses it: far away a line
    continues at its mirror image, and the chord between the two is no part of it.
    """
    steps = len(path) - 1
    place = np.linspace(0, steps, -(-STATES // steps) * steps + 1)
    k = np.minimum(place.astype(int), steps - 1)
    part = (place - k)[:, None, None]
    points = (1 - part) * path[k] + part * path[k + 1]
    held = frame.holds(path)
    drawn = frame.holds(points) & (held[k] | held[k + 1])
    return np.where(drawn[..., None], points, np.nan)


def _draw_slice(ax: Axes, title: str, field: Field, frame: Frame) -> None:
    """Streamlines of the field in the plane x_2 = 0, and the samples next to it."""
    (left, near, bottom), (right, far, top) = frame.low, frame.high
    distance = frame.picture.plate_distance
    offset = max(frame.picture.offset, 1e-3 * distance)
    # The field is smooth in each of these: a plate lies between two of them.
    intervals = [(bottom, -offset), (offset, distance - offset), (distance + offset, top)]
    x = np.linspace(left, right, ROWS)
    for low, high in intervals if frame.picture.behind else intervals[1:2]:
        share = (high - low) / (top - bottom)
        z = np.linspace(low, high, max(round(COLUMNS * share), 9))
        grid = np.meshgrid(x, z, indexing="ij")
        x_1, heights = (torch.from_numpy(part.ravel()).float() for part in grid)
        with torch.no_grad():
            direction, _ = field(torch.stack([x_1, torch.zeros_like(x_1)], dim=1), heights)
        parts = np.ma.masked_invalid(direction.double().numpy().reshape(len(x), len(z), 3))
        look: dict[str, Any] = {"color": STREAM_COLOUR, "linewidth": 0.7, "arrowsize": 0.7}
        ax.streamplot(z, x, parts[..., 2], parts[..., 0], density=(1.6 * share, 1.3), **look)
    for height, samples, colour in frame.plates:
        ax.axvline(height, color=colour, lw=1.5)
        x_1 = samples[np.abs(samples[:, 1]) < NEAR * (far - near), 0]
        ax.plot(np.full(len(x_1), height), x_1, "_", color=colour, ms=9, mew=1, alpha=0.4)
    ax.set(xlim=(bottom, top), ylim=(left, right), xlabel="z", ylabel="$x_1$")
    ax.set_title(f"{title}: $(E_z, E_{{x_1}})$ at $x_2 = 0$", fontsize=9)
    ax.grid(False)
