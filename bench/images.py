"""Figures of tasks on images: samples, translations, paths and nearest training images.

Made of what the cells have stored; no data set is read. Every image is clipped to the range of the
real ones and drawn in colour if it has three channels.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bench.ablation import file_name
from bench.stored import Array, Ranked, StoredImages

DPI = 120
"""Of the PNG files."""
ENLARGED = 2
"""Pixels of a PNG for a pixel of an image, at least."""
WIDE = 3.0
"""Frames whose deviation is more half ranges of the data than this are not clipped but scaled."""
SCALED = "(frames far beyond the data are drawn in their own range)"
PAGE = 12.0
"""Inches across a figure of several columns."""
SMALL = 7.5
"""Font size of the words next to images."""
LETTERS = 13
"""Letters of a title in an inch."""
Panels = Mapping[str, StoredImages]
Span = tuple[float, float]


def image_figures(
    task: str, panels: Panels, paired: bool, title: str
) -> Iterator[tuple[str, Figure]]:
    """File name and figure of the samples, the pairs, the paths and the neighbours.

    Args:
        task: its name.
        panels: what the cells have stored, by their titles; at least one.
        paired: whether the source is data: a translation.
        title: of every figure.
    """
    yield file_name("samples", task), samples_figure(panels, paired, title)
    if paired:
        yield file_name("pairs", task), pairs_figure(panels, title)
    if any(panel.paths is not None for panel in panels.values()):
        yield file_name("paths", task), paths_figure(panels, paired, title)
    if any(panel.ranked is not None for panel in panels.values()):
        yield file_name("neighbours", task), neighbours_figure(panels, paired, title)


def samples_figure(panels: Panels, paired: bool, title: str) -> Figure:
    """A block of samples a method beside real ones; of a translation also its inputs."""
    span = span_of(panels, paired)
    first: dict[tuple[int, ...], StoredImages] = {}
    for panel in panels.values():
        first.setdefault(panel.samples.shape[1:], panel)
    blocks: list[tuple[str, Array]] = []
    for shape, panel in first.items():
        size = f" ({shape[1]} x {shape[2]})" if len(first) > 1 else ""
        blocks += [(f"real, held out{size}", panel.target)]
        blocks += [(f"inputs, held out{size}", panel.source)] if paired else []
    blocks += [(name, panel.samples) for name, panel in panels.items()]
    shown = [(name, _block(images, span)) for name, images in blocks]
    width = max(2.4, *(_inches(image) for _, image in shown))
    columns = min(len(shown), 5, max(1, int(PAGE / width)))
    columns = math.ceil(len(shown) / math.ceil(len(shown) / columns))  # no row nearly empty
    figure, grid = _grid(len(shown), columns, width, width + 0.4)
    for ax, (name, image) in zip(grid, shown, strict=False):
        _show(ax, image)
        ax.set_title(_folded(name, width), fontsize=9)
    _entitle(figure, title, "the first of each, not selected")
    return figure


def _folded(name: str, width: float) -> str:
    """A name in lines that are no wider than ``width`` inches."""
    most = max(8, int(LETTERS * width))
    return "\n".join(textwrap.fill(line, most) for line in name.splitlines())


def pairs_figure(panels: Panels, title: str) -> Figure:
    """Of every method a row of inputs over the row of their outputs."""
    span = span_of(panels, paired=True)
    images = []
    for panel in panels.values():
        columns = min(len(panel.samples), _across(panel.samples, 220, 6, 16))
        both = np.concatenate([panel.source[:columns], panel.samples[:columns]])
        images.append(montage(both, columns, span))
    return _rows(
        dict(zip(panels, images, strict=True)), _entitled(title, "inputs above their outputs")
    )


def paths_figure(panels: Panels, paired: bool, title: str) -> Figure:
    """Of every method a few samples on their way, from the left to the right."""
    span = span_of(panels, paired)
    paths = {name: panel.paths for name, panel in panels.items() if panel.paths is not None}
    shown = {name: _strips(path, span) for name, path in paths.items()}
    width = max(4.8, *(_inches(image) for image, _ in shown.values()))
    height = max(width * image.shape[0] / image.shape[1] for image, _ in shown.values())
    columns = min(len(shown), max(1, int(PAGE / width)))
    figure, grid = _grid(len(shown), columns, width, height + 0.45)
    for ax, (name, (image, scaled)) in zip(grid, shown.items(), strict=False):
        _show(ax, image)
        ax.set_title(f"{name}\n{SCALED}" if scaled else name, fontsize=9)
        count = len(paths[name])
        shares = [f"{k / max(count - 1, 1):.0%}" for k in range(count)]
        ax.set_xticks(_centres(paths[name], count), shares, fontsize=SMALL)
    _entitle(figure, title, "a row a sample, a column a share of the solver's steps")
    return figure


def neighbours_figure(panels: Panels, paired: bool, title: str) -> Figure:
    """The best and the worst samples of every method over their nearest training images."""
    span = span_of(panels, paired)
    found = {name: panel.ranked for name, panel in panels.items() if panel.ranked is not None}
    parts = {name: _halves(ranked) for name, ranked in found.items()}
    images = {
        name: [montage(both, both.shape[0] // 2, span) for both, _ in halves]
        for name, halves in parts.items()
    }
    width = max(3.8, *(_inches(image) for pair in images.values() for image in pair))
    some = next(iter(images.values()))[0]
    height = width * some.shape[0] / some.shape[1] + 0.55
    figure, grid = _grid(2 * len(parts), 2, width, height)
    for row, (name, halves) in enumerate(parts.items()):
        pair = zip(("best", "worst"), images[name], halves, strict=True)
        for ax, (kind, image, (both, distances)) in zip(grid[2 * row :], pair, strict=False):
            _show(ax, image)
            ax.set_title(f"{name.replace(chr(10), ' ')}: {kind}", fontsize=9)
            at = _centres(both, len(distances))
            ax.set_xticks(at, [_number(d) for d in distances[:, 1]], fontsize=SMALL)
            top = ax.secondary_xaxis("top")
            top.set_xticks(at, [_number(d) for d in distances[:, 0]], fontsize=SMALL)
            top.tick_params(length=0, pad=1)
            top.spines[:].set_visible(False)
    words = "samples above their nearest training images; numbers: distance of the sample to the"
    _entitle(figure, title, f"{words}\nnearest held-out image (above) and training image (below)")
    return figure


def span_of(panels: Panels, paired: bool) -> Span:
    """The range of the real images, and of the inputs if they are data too."""
    real = [panel.target for panel in panels.values()]
    real += [panel.source for panel in panels.values()] if paired else []
    return min(float(images.min()) for images in real), max(float(x.max()) for x in real)


def montage(images: Array, columns: int, span: Span) -> Array:
    """Images (n, C, H, W) in rows of ``columns``, white between them; (height, width, 3) in [0, 1].

    Values are clipped to ``span``. Three channels are red, green and blue; of any other number the
    mean is drawn, in grey.
    """
    low, high = span
    n, channels, height, width = images.shape
    scaled = np.clip((images - low) / (high - low if high > low else 1.0), 0, 1)
    colour = scaled if channels == 3 else scaled.mean(1, keepdims=True).repeat(3, axis=1)
    rows = -(-n // columns)
    tiles = np.ones((rows * columns, height + 1, width + 1, 3))
    tiles[:n, :height, :width] = colour.transpose(0, 2, 3, 1)
    table = tiles.reshape(rows, columns, height + 1, width + 1, 3).transpose(0, 2, 1, 3, 4)
    return table.reshape(rows * (height + 1), columns * (width + 1), 3)[:-1, :-1]


def enlarged(image: Array, times: int) -> Array:
    """Every pixel of an image (H, W, 3) as a square of ``times`` x ``times``."""
    return image.repeat(times, axis=0).repeat(times, axis=1)


def _tiles(images: Array) -> int:
    """Images along the side of a block."""
    return min(_across(images, 100, 4, 8), math.isqrt(max(len(images) - 1, 0)) + 1)


def _block(images: Array, span: Span) -> Array:
    side = _tiles(images)
    return montage(images[: side * side], side, span)


def _across(images: Array, pixels: int, least: int, most: int) -> int:
    """How many images stand side by side: about ``pixels``, and not fewer than ``least``."""
    return int(np.clip(pixels // (images.shape[-1] + 1), least, most))


def _strips(path: Array, span: Span) -> tuple[Array, bool]:
    """A row of frames for each sample of a path (T', S, C, H, W), and whether some are scaled."""
    low, high = span
    wide = path.std(axis=(1, 2, 3, 4)) > WIDE * (high - low) / 2
    bottom, top = np.quantile(path, [0.01, 0.99], axis=(2, 3, 4), keepdims=True)
    bottom, top = np.minimum(bottom, low), np.maximum(top, high)
    own = low + (path - bottom) / (top - bottom) * (high - low)
    rows = np.where(wide[:, None, None, None, None], own, path).swapaxes(0, 1)
    return montage(rows.reshape(-1, *path.shape[2:]), len(path), span), bool(wide.any())


def _halves(ranked: Ranked) -> list[tuple[Array, Array]]:
    """Of the best and of the worst: samples and then neighbours (2k, C, H, W), distances (k, 2)."""
    half = len(ranked.samples) // 2
    return [
        (np.concatenate([ranked.samples[part], ranked.neighbours[part]]), ranked.distances[part])
        for part in (slice(half), slice(half, None))
    ]


def _centres(images: Array, count: int) -> Array:
    """Where the columns of a montage of ``count`` images across have their middles."""
    width = images.shape[-1]
    middles: Array = np.arange(count) * (width + 1) + (width - 1) / 2
    return middles


def _inches(image: Array) -> float:
    """The width that a montage needs."""
    return ENLARGED * float(image.shape[1]) / DPI + 0.1


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.3g}"


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """``count`` panels in rows of ``columns``."""
    rows = -(-count // columns)
    size = columns * width + 0.2, rows * height + 0.6
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in grid[count:]:
        ax.axis("off")
    return figure, grid[:count]


def _rows(images: Mapping[str, Array], title: str) -> Figure:
    """An image a row, under its name."""
    width = max(8.0, *(_inches(image) for image in images.values()))
    heights = [width * image.shape[0] / image.shape[1] + 0.35 for image in images.values()]
    layout = ConstrainedLayoutEngine(h_pad=0.1)
    figure = Figure(figsize=(width, sum(heights) + 0.5), layout=layout)
    grid = figure.subplots(len(images), 1, squeeze=False, height_ratios=heights)
    for ax, (name, image) in zip(grid[:, 0], images.items(), strict=True):
        _show(ax, image)
        ax.set_title(name.replace("\n", " "), loc="left", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def _show(ax: Axes, image: Array) -> None:
    ax.imshow(image, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0, pad=1)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def _entitled(title: str, words: str) -> str:
    return f"{title}: {words}" if "\n" not in title else f"{title}\n{words}"


def _entitle(figure: Figure, title: str, words: str) -> None:
    figure.suptitle(_entitled(title, words), fontsize=10)
