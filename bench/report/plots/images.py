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

from bench.cell.stored import Array, StoredImages
from bench.report.plots.style import DPI, panels_of
from bench.store.folder import file_name

ENLARGED = 2  # pixels of a PNG for a pixel of an image, at least
WIDE = 3.0  # frames that deviate by more half ranges of the data are not clipped but scaled
SCALED = "(frames far beyond the data are drawn in their own range)"
PAGE = 12.0  # inches across a figure of several columns
LETTERS = 13  # of a title in an inch
SMALL = 7.5  # font size of the words next to images
Panels = Mapping[str, StoredImages]
Span = tuple[float, float]


def image_figures(
    task: str, panels: Panels, paired: bool, title: str
) -> Iterator[tuple[str, Figure]]:
    """File name and figure of the samples, the pairs, the paths and the neighbours of a task.

    ``panels`` has what the cells have stored, by their labels, at least one; ``paired`` says that
    the source is data, too: the task is a translation. All are drawn in the range of the real
    images, and of the inputs of a translation.
    """
    real = [panel.target for panel in panels.values()]
    real += [panel.source for panel in panels.values()] if paired else []
    span = min(float(images.min()) for images in real), max(float(x.max()) for x in real)
    yield file_name("samples", task), samples_figure(panels, paired, span, title)
    if paired:
        yield file_name("pairs", task), pairs_figure(panels, span, title)
    yield file_name("paths", task), paths_figure(panels, span, title)
    if any(panel.ranked is not None for panel in panels.values()):
        yield file_name("neighbours", task), neighbours_figure(panels, span, title)


def samples_figure(panels: Panels, paired: bool, span: Span, title: str) -> Figure:
    """A block of samples a method beside real ones; of a translation also its inputs."""
    first: dict[tuple[int, ...], StoredImages] = {}
    for panel in panels.values():
        first.setdefault(panel.samples.shape[1:], panel)
    blocks: list[tuple[str, Array]] = []
    for shape, panel in first.items():
        size = f" ({shape[1]} x {shape[2]})" if len(first) > 1 else ""
        blocks += [(f"real, held out{size}", panel.target)]
        blocks += [(f"inputs, held out{size}", panel.source)] if paired else []
    blocks += [(name, panel.samples) for name, panel in panels.items()]
    shown = []
    for name, images in blocks:
        side = min(_across(images, 100, 4, 8), math.isqrt(max(len(images) - 1, 0)) + 1)
        shown.append((name, montage(images[: side * side], side, span)))
    return _figure(shown, [title, "the first of each, not selected"], 2.4, 0.4, most=5)[0]


def pairs_figure(panels: Panels, span: Span, title: str) -> Figure:
    """Of every method a row of inputs over the row of their outputs."""
    shown = []
    for name, panel in panels.items():
        columns = min(len(panel.samples), _across(panel.samples, 220, 6, 16))
        both = np.concatenate([panel.source[:columns], panel.samples[:columns]])
        shown.append((name.replace("\n", " "), montage(both, columns, span)))
    return _figure(shown, [title, "inputs above their outputs"], 8.0, 0.4, most=1)[0]


def paths_figure(panels: Panels, span: Span, title: str) -> Figure:
    """Of every method a few samples on their way, from the left to the right."""
    shown = []
    for name, panel in panels.items():
        image, scaled = _strips(panel.paths, span)
        shown.append((f"{name}\n{SCALED}" if scaled else name, image))
    words = "a row a sample, a column a share of the solver's steps"
    figure, axes = _figure(shown, [title, words], 4.8, 0.45)
    for ax, panel in zip(axes, panels.values(), strict=True):
        frames = len(panel.paths)
        shares = [f"{k / max(frames - 1, 1):.0%}" for k in range(frames)]
        ax.set_xticks(_centres(panel.paths, frames), shares, fontsize=SMALL)
    return figure


def neighbours_figure(panels: Panels, span: Span, title: str) -> Figure:
    """The best and the worst samples of every method over their nearest training images."""
    shown, numbers = [], []
    for name, panel in panels.items():
        if panel.ranked is not None:
            samples, neighbours, distances = (np.split(part, 2) for part in panel.ranked)
            for half, kind in enumerate(("best", "worst")):
                both = np.concatenate([samples[half], neighbours[half]])
                image = montage(both, len(samples[half]), span)
                shown.append((f"{name}: {kind}".replace("\n", " "), image))
                numbers.append((_centres(both, len(samples[half])), distances[half]))
    words = "samples above their nearest training images; numbers: distance of the sample to the\n"
    words += "nearest held-out image (above) and training image (below)"
    figure, axes = _figure(shown, [title, words], 3.8, 0.55)
    for ax, (centres, both_distances) in zip(axes, numbers, strict=True):
        above, below = ([f"{d:.3g}" for d in column] for column in both_distances.T)
        ax.set_xticks(centres, below, fontsize=SMALL)
        top = ax.secondary_xaxis("top")
        top.set_xticks(centres, above, fontsize=SMALL)
        top.tick_params(length=0, pad=1)
        top.spines[:].set_visible(False)
    return figure


def _figure(
    shown: list[tuple[str, Array]], title: list[str], width: float, words: float, most: int = 2
) -> tuple[Figure, list[Axes]]:
    """Pictures (H, W, 3) under their names, in at most ``most`` columns.

    A column has ``width`` inches, or more where the pixels need it, and what stands above and below
    a picture has ``words`` inches of height. ``title`` is that of the figure, and what is shown.
    """
    width = max(width, *(ENLARGED * image.shape[1] / DPI + 0.1 for _, image in shown))
    height = max(width * image.shape[0] / image.shape[1] for _, image in shown) + words
    columns = min(len(shown), most, max(1, int(PAGE / width)))
    rows = math.ceil(len(shown) / columns)
    columns = math.ceil(len(shown) / rows)  # no row nearly empty
    size = columns * width + 0.2, rows * height + 0.6
    figure, axes = panels_of(len(shown), columns, size, gap=0.1)
    for ax, (name, image) in zip(axes, shown, strict=True):
        ax.imshow(image, interpolation="nearest")
        lines = [textwrap.fill(line, max(8, int(LETTERS * width))) for line in name.splitlines()]
        ax.set_title("\n".join(lines), fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.tick_params(length=0, pad=1)
        ax.spines[:].set_visible(False)
        ax.grid(False)
    figure.suptitle(("\n" if "\n" in title[0] else ": ").join(title), fontsize=10)
    return figure, axes


def montage(images: Array, columns: int, span: Span) -> Array:
    """Images (n, C, H, W) in rows of ``columns``, white between them; (height, width, 3) in [0, 1].

    Values are clipped to ``span``. Three channels are red, green and blue; of any other number the
    mean is drawn, in grey.
    """
    # torchvision's make_grid frames several images but not a single one, takes no other channels,
    # and narrows the picture where there are fewer images than columns.
    low, high = span
    colour = np.clip((images - low) / (high - low if high > low else 1.0), 0, 1)
    if images.shape[1] != 3:
        colour = colour.mean(1, keepdims=True).repeat(3, axis=1)
    padding = (0, -len(images) % columns), (0, 0), (0, 1), (0, 1)
    tiles = np.pad(colour, padding, constant_values=1.0)
    _, _, height, width = tiles.shape
    rows = tiles.reshape(-1, columns, 3, height, width).transpose(0, 3, 1, 4, 2)
    return rows.reshape(-1, columns * width, 3)[:-1, :-1]


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


def _centres(images: Array, count: int) -> Array:
    """Where the columns of a montage of ``count`` images across have their middles."""
    width = images.shape[-1]
    return np.asarray(np.arange(count) * (width + 1) + (width - 1) / 2)
