"""Pictures of the field of two-dimensional cells: its lines from plate to plate, and a slice.

Drawn again from what a cell has stored, its record and its model. Where the method learns a field
that has an exact counterpart (``efm``: ``efm-exact``), the exact one stands below.
"""

import textwrap
from collections.abc import Callable, Iterator
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
from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.ablation import file_name
from bench.cell import build_model, generator, laws
from bench.folder import MODEL, cell_folder
from bench.spec import Cell, public_fields
from bench.stored import read_cell, read_model, reason_of
from datasets import TASKS, Distribution
from methods import METHODS, Method
from methods.base import Field
from methods.solvers import Solver

MAX_FIELDS = 12
"""Figures of fields in a run."""
LINES = 60
SHOWN = 400
"""Samples of each plate in the 3D view."""
TICKS = 1000
"""Samples of each plate of which those near the slice are shown."""
NEAR = 0.03
"""Distance from the slice, in widths of the picture, of the samples shown with it."""
EXACT_CHARGES = 1024
MAX_STEPS, MIN_TOLERANCE = 200, 1e-5
"""Lines of a picture are integrated no finer than this."""
STATES = 400
"""Points of a line that are drawn, at least."""
ROWS, COLUMNS = 41, 81
"""Grid of the slice."""
SOURCE_COLOUR, TARGET_COLOUR, SAMPLES_COLOUR = "#7f7f7f", "#3b6fb6", "#c2452d"
START_COLOUR, STREAM_COLOUR = "black", "#5b7083"
BETWEEN_COLOUR, BEHIND_COLOUR = "#2a7f62", "#d98c1f"
Array = NDArray[np.float64]
Tell = Callable[[str], None]


class Box(NamedTuple):
    """The part of space that a figure shows."""

    low: Array  # (3,): x_1, x_2, z
    high: Array  # (3,)

    def holds(self, points: Array) -> NDArray[np.bool_]:
        """Whether points (..., 3) are inside."""
        within = (points >= self.low) & (points <= self.high)
        return np.asarray(within.all(-1))


class Capacitor(NamedTuple):
    """What the rows of a figure share: the plates, their samples and the frame."""

    plate_distance: float
    behind: bool  # whether lines may go on behind the plates
    source: Array  # (TICKS, 2)
    target: Array  # (TICKS, 2)
    box: Box


class Slice(NamedTuple):
    """The direction of the field in the plane x_2 = 0, between or behind the plates."""

    z: Array  # (Z,)
    x: Array  # (X,)
    along: Array  # (X, Z): the z component
    across: Array  # (X, Z): the x_1 component


class Picture(NamedTuple):
    """What a row of a figure shows."""

    title: str
    path: Array  # (T+1, B, 3): x_1, x_2, z
    landed: NDArray[np.bool_]  # (B,)
    slices: list[Slice]


def field_figures(
    done: pd.DataFrame, out: Path, tell: Tell, most: int = MAX_FIELDS
) -> Iterator[tuple[str, Figure]]:
    """File name and figure of the field of each task, method, L and kind of lines.

    Of each the first cell of the lowest seed is drawn, and at most ``most`` in all: the
    first of every task and method, then the second of each, and so on. What cannot be drawn is
    told and left out.

    Args:
        done: the rows of ``results.csv`` that are done, with their settings.
        out: the output folder.
        tell: told of what is not drawn.
        most: figures at most.
    """
    rows = _with_field(done)
    turn = rows.groupby(["task", "method"]).cumcount()
    chosen = rows.loc[turn.sort_values(kind="stable").index[:most]].sort_index()
    if len(chosen) < len(rows):
        tell(
            f"fields of {len(chosen)} settings are drawn, {len(rows) - len(chosen):,} are not"
            f" (python -m bench.report {out} --fields {len(rows)} draws them)"
        )
    for row in chosen.to_dict("records"):
        words = [row["task"], row["method"], f"L{row['L']}".removesuffix(".0"), row["lines"]]
        name = file_name("field", "_".join(str(word) for word in words if pd.notna(word)))
        try:
            figure = field_figure(cell_folder(out, row["id"]), str(row["setting"]))
        except Exception as error:  # files, methods and tasks of another time may raise anything
            tell(f"{name}: not drawn: {reason_of(error)}")
        else:
            yield name, figure


def _with_field(done: pd.DataFrame) -> pd.DataFrame:
    """The first row of every task, method, L and kind of lines that may have a picture."""
    flat = [name for name, task in TASKS.items() if task.dim == 2]
    with_field = [name for name, method in METHODS.items() if method.field is not Method.field]
    rows = done[done["task"].isin(flat) & done["method"].isin(with_field) & done["L"].notna()]
    rows = rows.assign(lines=rows.get("lines"))
    rows = rows.sort_values("seed", kind="stable")
    return rows.drop_duplicates(["task", "method", "L", "lines"]).sort_index()


def field_figure(folder: Path, setting: str = "") -> Figure:
    """The learned field of a cell over the exact one; of an untrained method its field alone.

    Args:
        folder: the folder of the cell.
        setting: what tells the cell from others of its task and method, in words.

    Raises:
        ValueError: a record or model that is missing, unreadable or not of the current code.
    """
    cell = read_cell(folder)
    method, task = cell.build_method(), cell.build_task()
    source, target = laws(cell, task)
    model = read_model(folder / MODEL, cell, method, source, target)
    capacitor = _capacitor(cell, method, source, target)
    kind = "learned field" if method.trained else "exact field"
    pictures = [_picture(kind, cell, method, model, capacitor, source)]
    exact = exact_counterpart(method, target.dim)
    if exact is not None:
        model = build_model(cell, exact, source, target)
        kind = f"exact field of {EXACT_CHARGES:,} charges a plate"
        pictures.append(_picture(kind, cell, exact, model, capacitor, source))
    title = f"{task.title}: {method.title} ({method.name}), seed {cell.seed}"
    return _drawn(pictures, capacitor, f"{title}\n{_words(cell, setting)}")


def exact_counterpart(method: Method, dim: int) -> Method | None:
    """The untrained method ``<name>-exact`` with the settings that both have, if there is one."""
    kind = METHODS.get(f"{method.name}-exact")
    if kind is None or not method.trained:
        return None
    names = public_fields(kind)
    common = {key: value for key, value in method.hyperparameters().items() if key in names}
    if "charges" in names:
        common["charges"] = EXACT_CHARGES
    return kind.create(dim, **common)


def _capacitor(cell: Cell, method: Method, source: Distribution, target: Distribution) -> Capacitor:
    """The frame: the samples, and half of L to every side, where lines bulge in two dimensions."""
    settings = method.hyperparameters()
    distance, behind = float(settings["L"]), settings.get("lines", "forward") != "forward"
    rng = generator(cell, "picture")
    plates = [law.low_variance(TICKS, rng).double().numpy() for law in (source, target)]
    points = np.concatenate(plates)
    centre, extent = (points.max(0) + points.min(0)) / 2, points.max(0) - points.min(0)
    half = max(0.6 * extent.max(), distance / 2)
    margin = distance / 2 if behind else 0.03 * distance
    low, high = np.append(centre - half, -margin), np.append(centre + half, distance + margin)
    return Capacitor(distance, behind, plates[0], plates[1], Box(low, high))


def _picture(
    title: str,
    cell: Cell,
    method: Method,
    model: nn.Module,
    capacitor: Capacitor,
    source: Distribution,
) -> Picture:
    """Lines and slices of a field; the same lines for every field of a cell."""
    solver = cell.sample.model_copy(
        update={
            "solver_steps": min(cell.sample.solver_steps, MAX_STEPS),
            "rtol": max(cell.sample.rtol, MIN_TOLERANCE),
            "atol": max(cell.sample.atol, MIN_TOLERANCE),
        }
    )
    rng = generator(cell, "lines of the picture")
    x0 = source.low_variance(LINES, rng)
    # In their own order, even samples and the even random numbers of a transport go together.
    x0 = x0[torch.randperm(len(x0), generator=rng)]
    with torch.no_grad():
        path, landed = _lines(method, model, x0, solver, rng)
        field = method.field(model)
        if field is None:
            raise ValueError(f"{method.name} has no field with these settings")
        offset = float(method.hyperparameters().get("offset") or 0.0)
        slices = [_slice(field, capacitor.box, *part) for part in _parts(capacitor, offset)]
    return Picture(title, path, landed, slices)


def _lines(
    method: Method, model: nn.Module, x0: Tensor, solver: Solver, rng: torch.Generator
) -> tuple[Array, NDArray[np.bool_]]:
    """Lines from the source samples ``x0`` (B, 2), (T+1, B, 3), and whether they landed (B,)."""
    transport = method.transport(model, method.start(x0), solver, path=True, rng=rng)
    if transport.path is None or transport.heights is None:
        raise ValueError(f"{method.name} does not say where its lines run")
    path = torch.cat([transport.path, transport.heights[..., None]], dim=2).double().numpy()
    return np.where(np.isfinite(path), path, np.nan), transport.landed.numpy()


def _parts(capacitor: Capacitor, offset: float) -> list[tuple[float, float]]:
    """Intervals of z in which the field is smooth: a plate lies between two of them."""
    distance, offset = capacitor.plate_distance, max(offset, 1e-3 * capacitor.plate_distance)
    between = (offset, distance - offset)
    if not capacitor.behind:
        return [between]
    low, high = float(capacitor.box.low[2]), float(capacitor.box.high[2])
    return [(low, -offset), between, (distance + offset, high)]


def _slice(field: Field, box: Box, bottom: float, top: float) -> Slice:
    share = (top - bottom) / (box.high[2] - box.low[2])
    z = np.linspace(bottom, top, max(round(COLUMNS * share), 9))
    x = np.linspace(box.low[0], box.high[0], ROWS)
    x_grid, z_grid = (
        torch.from_numpy(part.ravel()).float() for part in np.meshgrid(x, z, indexing="ij")
    )
    direction, _ = field(torch.stack([x_grid, torch.zeros_like(x_grid)], dim=1), z_grid)
    along, across = (direction[:, k].reshape(len(x), len(z)).double().numpy() for k in (-1, 0))
    return Slice(z, x, along, across)


def _words(cell: Cell, setting: str) -> str:
    """Every hyperparameter that applies, and what else tells the cell from others."""
    known = {key: value for key, value in cell.hyperparameters.items() if value is not None}
    order = [key for key in ("L", "lines", "points", "sigma", "endpoints") if key in known]
    words = [f"{key} = {_short(known[key])}" for key in dict.fromkeys([*order, *known])]
    others = [word.partition("=") for word in setting.split(", ") if word]
    words += [f"{key} = {value}" for key, _, value in others if key not in cell.hyperparameters]
    lines = textwrap.wrap(", ".join(word.replace(" ", "\u00a0") for word in words), 130)
    return "\n".join(lines).replace("$", r"\$")  # no formula


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _drawn(pictures: list[Picture], capacitor: Capacitor, title: str) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.15)
    figure = Figure(figsize=(12.5, 4.6 * len(pictures) + 0.9), layout=layout)
    grid = figure.add_gridspec(len(pictures), 2, width_ratios=[1.15, 1])
    for row, picture in enumerate(pictures):
        view = figure.add_subplot(grid[row, 0], projection="3d")
        assert isinstance(view, Axes3D)
        _draw_lines(view, picture, capacitor)
        _draw_slice(figure.add_subplot(grid[row, 1]), picture, capacitor)
    figure.suptitle(title, fontsize=9)
    figure.legend(handles=_legend(capacitor), loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _legend(capacitor: Capacitor) -> list[Line2D]:
    dots = {"source": SOURCE_COLOUR, "target": TARGET_COLOUR}
    dots |= {"starts of lines": START_COLOUR, "ends of lines": SAMPLES_COLOUR}
    lines = {"line between the plates": BETWEEN_COLOUR}
    if capacitor.behind:
        lines["line that runs behind a plate"] = BEHIND_COLOUR
    marks = [Line2D([], [], color=c, label=n, marker="o", ls="", ms=4) for n, c in dots.items()]
    return marks + [Line2D([], [], color=c, label=n) for n, c in lines.items()]


def _draw_lines(ax: Axes3D, picture: Picture, capacitor: Capacitor) -> None:
    """The 3D view: z from left to right, x_1 upward, x_2 into the depth."""
    box, distance = capacitor.box, capacitor.plate_distance
    z = picture.path[..., 2] / distance
    behind = np.asarray(((z < -1e-2) | (z > 1.01)).any(axis=0))
    path = inside(picture.path, box)
    for k in range(path.shape[1]):
        colour = BEHIND_COLOUR if behind[k] else BETWEEN_COLOUR
        ax.plot(path[:, k, 2], path[:, k, 1], path[:, k, 0], color=colour, lw=0.8, alpha=0.8)
    for height, samples, colour in _plates(capacitor):
        some = samples[:SHOWN]
        ax.scatter(
            np.full(len(some), height), some[:, 1], some[:, 0], s=3, alpha=0.25, color=colour
        )
        ax.add_collection3d(_plate(box, height, colour))
    for ends, colour in ((picture.path[0], START_COLOUR), (picture.path[-1], SAMPLES_COLOUR)):
        ends = ends[box.holds(ends)]
        ax.scatter(ends[:, 2], ends[:, 1], ends[:, 0], s=8, color=colour, depthshade=False)
    ax.set(xlabel="z", ylabel="$x_2$", zlabel="$x_1$", xlim=(box.low[2], box.high[2]))
    ax.set(ylim=(box.low[1], box.high[1]), zlim=(box.low[0], box.high[0]))
    spans = box.high - box.low
    ax.set_box_aspect((np.clip(spans[2] / spans[0], 1.5, 2.5), 1, 1), zoom=1.15)
    ax.view_init(elev=16, azim=-72)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    words = f"{picture.title}: {path.shape[1]} lines, cut at the frame"
    words += f"; {int(behind.sum())} run behind a plate" if capacitor.behind else ""
    lost = int((~picture.landed).sum())
    ax.set_title(f"{words}; {lost} lost" if lost else words, fontsize=9)


def _plates(capacitor: Capacitor) -> list[tuple[float, Array, str]]:
    """Height, samples and colour of both plates."""
    return [
        (0.0, capacitor.source, SOURCE_COLOUR),
        (capacitor.plate_distance, capacitor.target, TARGET_COLOUR),
    ]


def _plate(box: Box, height: float, colour: str) -> Poly3DCollection:
    (x_low, y_low, _), (x_high, y_high, _) = box
    corners = [(y_low, x_low), (y_high, x_low), (y_high, x_high), (y_low, x_high)]
    square = [(height, *corner) for corner in corners]
    return Poly3DCollection([square], facecolor=colour, edgecolor=colour, alpha=0.08)


def inside(path: Array, box: Box) -> Array:
    """The lines (T+1, B, 3) inside the box, at least ``STATES`` points each, NaN outside.

    A segment with both ends outside is left out even if it crosses the box: far away a line goes
    on at its mirror image, and the chord between the two is no part of it.
    """
    steps = len(path) - 1
    fine = -(-STATES // steps)
    place = np.linspace(0, steps, fine * steps + 1)
    k = np.minimum(place.astype(int), steps - 1)
    part = (place - k)[:, None, None]
    points = (1 - part) * path[k] + part * path[k + 1]
    held = box.holds(path)
    drawn = box.holds(points) & (held[k] | held[k + 1])
    return np.where(drawn[..., None], points, np.nan)


def _draw_slice(ax: Axes, picture: Picture, capacitor: Capacitor) -> None:
    """Streamlines of the field in the plane x_2 = 0, and the samples next to it."""
    box = capacitor.box
    span = box.high[2] - box.low[2]
    for part in picture.slices:
        share = float(np.ptp(part.z) / span)
        ax.streamplot(
            part.z,
            part.x,
            np.ma.masked_invalid(part.along),
            np.ma.masked_invalid(part.across),
            density=(1.6 * share, 1.3),
            color=STREAM_COLOUR,
            linewidth=0.7,
            arrowsize=0.7,
        )
    for height, samples, colour in _plates(capacitor):
        ax.axvline(height, color=colour, lw=1.5)
        near = samples[np.abs(samples[:, 1]) < NEAR * (box.high[1] - box.low[1]), 0]
        ax.plot(np.full(len(near), height), near, "_", color=colour, ms=9, mew=1, alpha=0.4)
    ax.set(xlim=(box.low[2], box.high[2]), ylim=(box.low[0], box.high[0]))
    ax.set(xlabel="z", ylabel="$x_1$")
    ax.set_title(f"{picture.title}: $(E_z, E_{{x_1}})$ at $x_2 = 0$", fontsize=9)
    ax.grid(False)
