"""What a training batch of EFM shows of the field, by dimension and by z.

python -m studies.batch_field --out DIR

EFM learns the field of a batch of N charges a plate. The points lie between two of these
charges (``endpoints = included``), or between two others (``independent``). Here that field is
compared with the field of the point's own pair alone, with the field of many fresh charges, and
with the field of the two distributions themselves, which are chosen such that it is known.
"""

import argparse
import hashlib
import io
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bench.config.errors import SpecError
from bench.config.values import check_seeds, parse_seeds
from bench.store.folder import StorageError, write_atomically, writing
from datasets import Distribution, Empirical
from datasets.scikit_learn import GaussianToDigits
from methods.capacitor.lines import backward_share
from methods.electrostatics import capacitor_field, poisson_field, superpose

matplotlib.use("Agg")

PLATE_DISTANCE = 6.0
"""L: EFM's default above D = 8."""
DIMS = (2, 4, 8, 16, 32, 64, 128, 256)
HEIGHTS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""t = z / L of the points."""
CHARGES, MANY = 256, 20_000
"""Charges a plate of a batch, EFM's default; and of the field of many."""
MODES, STD, MODES_SEED = 8, 0.5, 0
"""The target in D dimensions: Gaussians of that standard deviation, with means from N(0, I)."""
OFFSET = 0.05
"""Height over the source plate at which the flux is looked at: the methods' default."""

# The tables of what a larger batch, or more of them, would show.
NEED_DIMS, NEED_HEIGHTS, NEED_MANY = (2, 16, 64), (0.02, 0.5, 0.98), 65_536
NEED_CHARGES = (256, 1024, 4096, 16_384)
ENOUGH = 0.9
"""Cosine above which a batch is said to show the field."""
BATCHES = 64
"""Batches whose directions are averaged."""

NODES_A_LOG = 25
"""Nodes of the field of a Gaussian a unit of log(tau); twice as many change nothing."""
BLOCK = 256
"""Points whose nodes are held at a time."""

COSINES = {
    "included_pair": "batch with the pair, and the pair alone",
    "included_many": "batch with the pair, and many charges",
    "independent_many": "batch without the pair, and many charges",
    "many_law": "many charges, and the distributions themselves",
    "included_law": "batch with the pair, and the distributions",
    "independent_law": "batch without the pair, and the distributions",
    "pair_law": "the pair alone, and the distributions",
}
"""The pairs of fields whose mean cosine is taken."""
SHOWN = ("included_pair", "included_many", "independent_many", "many_law")
"""Those that are printed; all are in the CSV file."""
AVERAGES = {
    "averaged_law": f"cosine of the mean of {BATCHES} directions to the distributions",
    "averaged_z": "z part of that mean",
    "law_z": "z part of the direction of the distributions",
}
"""Of batches without the pair."""
OTHERS = {
    "backward_many": f"flux backward, {MANY:,} charges",
    "backward_law": "flux backward, the distributions",
    "spread_of_lengths": "relative spread of the lengths of pairs",
}
"""Numbers without a t."""
KEYS = ["case", "dim", "charges", "many", "t", "quantity"]
FieldAt = tuple[Tensor, Tensor]
Plates = tuple[Tensor, Tensor]
OK, MISUSED, INTERRUPTED = 0, 2, 130
NAME = "high_dimension"
MAX_POINTS = 100_000


class Gaussians(Distribution):
    """Equal N(mean_k, std^2 I) with the means (K, D)."""

    def __init__(self, means: Tensor, std: float) -> None:
        self.means, self.std, self.shape = means, std, (means.shape[1],)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """``n`` independent samples, shape (n, D)."""
        mode = torch.randint(len(self.means), (n,), generator=rng)
        return self.means[mode] + self.std * torch.randn(n, self.dim, generator=rng)


class Number(NamedTuple):
    """One number, and what it is of."""

    case: str
    dim: int
    charges: int | None  # a plate of the batch, if there is one
    many: int | None  # charges a plate of the field of many, if there is one
    t: float | None
    quantity: str
    points: int
    seed: int
    value: float


class Case(NamedTuple):
    """Two distributions whose fields are known."""

    name: str
    source: Distribution
    target: Distribution

    @property
    def dim(self) -> int:
        """D."""
        return self.source.dim

    def draw(self, n: int, rng: torch.Generator) -> Plates:
        """``n`` charges for either plate, (n, D) in float64, as a training batch has them."""
        return self.source.sample(n, rng).double(), self.target.sample(n, rng).double()

    def draw_many(self, n: int, rng: torch.Generator) -> Plates:
        """The same, but of a data set all of its training samples, once."""
        return all_or_draw(self.source, n, rng), all_or_draw(self.target, n, rng)

    def field(self, x: Tensor, z: Tensor) -> FieldAt:
        """Direction and log-norm of the field of both at x (B, D), z (B,)."""
        source = plate_field(self.source, x, z)
        return superpose(source, plate_field(self.target, x, z - PLATE_DISTANCE))


def gaussian_case(dim: int) -> Case:
    """N(0, I) to ``MODES`` Gaussians whose means are drawn once, the same for every seed."""
    means = torch.randn(MODES, dim, generator=torch.Generator().manual_seed(MODES_SEED))
    return Case("gaussians", standard_normal(dim), Gaussians(means, STD))


def digits_case() -> Case:
    """The task ``gaussian_to_digits``: N(0, I) to the training images of the digits."""
    task = GaussianToDigits()
    return Case(task.name, standard_normal(task.dim), task.target())


def standard_normal(dim: int) -> Gaussians:
    """N(0, I) in R^D."""
    return Gaussians(torch.zeros(1, dim), 1.0)


def all_or_draw(distribution: Distribution, n: int, rng: torch.Generator) -> Tensor:
    """All training samples of a data set, ``n`` samples of another distribution; in float64."""
    if isinstance(distribution, Empirical):
        return distribution.train.double()
    return distribution.sample(n, rng).double()


def plate_field(distribution: Distribution, x: Tensor, height: Tensor) -> FieldAt:
    """The field of a unit plate with charges of a distribution; of a data set the training samples.

    Args:
        distribution: Gaussians or a data set.
        x: data coordinates, shape (B, D), float64.
        height: signed distances from the plate, shape (B,), not zero.

    Raises:
        TypeError: another distribution.
    """
    if isinstance(distribution, Empirical):
        return poisson_field(x, height, distribution.train.double())
    if not isinstance(distribution, Gaussians):
        found = type(distribution).__name__
        raise TypeError(f"distribution: expected Gaussians or a data set, got {found}")
    means, std = distribution.means.double(), distribution.std
    blocks = zip(torch.split(x, BLOCK), torch.split(height, BLOCK), strict=True)
    fields = [gaussian_field(rows, h, means, std) for rows, h in blocks]
    direction, log_norm = (torch.cat(parts) for parts in zip(*fields, strict=True))
    return direction, log_norm


def gaussian_field(x: Tensor, height: Tensor, means: Tensor, std: float) -> FieldAt:
    r"""The field of equal Gaussians N(m_k, s^2 I) on a plate of R^{D+1}, of total charge 1.

    The potential of a charge is the heat it has given off for ever, 1/2 int N(.; 0, tau I) dtau,
    and heat kernels only add to the variance of a Gaussian:

    .. math:: (E_x, E_z) = \frac{1}{2K} \sum_k \int_0^\infty
        \Bigl(\frac{x - m_k}{s^2 + \tau}, \frac{h}{\tau}\Bigr)
        N(x; m_k, (s^2 + \tau) I_D)\, N(h; 0, \tau)\, d\tau

    by the trapezoidal rule in log(tau), whose error for such an integrand falls faster than any
    power of the step; with logarithms of the weights, as :mod:`methods.electrostatics` has them.

    Args:
        x: data coordinates, shape (B, D), float64.
        height: signed distances h from the plate, shape (B,), not zero.
        means: m_k, shape (K, D), float64.
        std: s.

    Returns:
        Direction (B, D+1), z last, and log|E| (B,) with the constants of
        :func:`methods.electrostatics.poisson_field`.
    """
    dim = x.shape[1]
    difference = x[:, None] - means  # (B, K, D)
    squared = difference.square().sum(2)[..., None]  # (B, K, 1)
    h = height[:, None, None]
    # Below h^2 / 80 the weight is under exp(-40); far above all distances it is a power of tau.
    low = math.log(float(height.abs().min()) ** 2 / 80)
    high = math.log(1e7 * (float(squared.max()) + float(height.abs().max()) ** 2 + std**2))
    u = torch.linspace(low, high, math.ceil(NODES_A_LOG * (high - low)), dtype=torch.float64)
    tau = u.exp()  # (T,)
    variance = std**2 + tau
    log_weight = u - (dim * variance.log() + squared / variance + tau.log() + h**2 / tau) / 2
    log_scale = log_weight.amax((1, 2), keepdim=True)
    weight = (log_weight - log_scale).exp()  # (B, K, T)
    e_x = torch.einsum("bk,bkd->bd", weight @ (1 / variance), difference)
    e_z = height * (weight @ (1 / tau)).sum(1)
    field = torch.cat([e_x, e_z[:, None]], dim=1)
    norm = torch.linalg.vector_norm(field, dim=1)
    constant = math.log(float(u[1] - u[0]) / (2 * len(means))) - (dim + 1) / 2 * math.log(math.tau)
    return field / norm[:, None], log_scale[:, 0, 0] + norm.log() + constant


def pair_direction(p: Tensor, q: Tensor) -> Tensor:
    """Direction (B, D+1) of the field of p and q (B, D) alone, anywhere between the two.

    There both charges push along their segment: (q - p, L) / |(q - p, L)|, the velocity that
    flow matching gives to the pair, normalised.
    """
    along = torch.cat([q - p, p.new_full((len(p), 1), PLATE_DISTANCE)], dim=1)
    unit: Tensor = along / torch.linalg.vector_norm(along, dim=1, keepdim=True)
    return unit


def on_segments(p: Tensor, q: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """The points (1 - t) p + t q, shape (B, D), and their z = t L, shape (B,)."""
    return torch.lerp(p, q, t), p.new_full((len(p),), t * PLATE_DISTANCE)


def direction(x: Tensor, z: Tensor, charges: Plates) -> Tensor:
    """Direction (B, D+1) of the field of the charges."""
    return capacitor_field(x, z, *charges, PLATE_DISTANCE)[0]


def mean_cosine(first: Tensor, second: Tensor) -> float:
    """Mean cosine between unit vectors (B, D+1)."""
    return float(torch.linalg.vecdot(first, second).mean())


def measure(
    case: Case, sizes: Sequence[int], many: int, heights: Iterable[float], points: int, seed: int
) -> Iterator[Number]:
    """The ``COSINES`` at ``points`` points (1 - t) p + t q, z = t L.

    p and q are the endpoints of random pairs of the smallest batch. The first n charges of one
    draw are the batch of n, so the pairs are among the charges of every batch; the batches
    without them are cut from a second draw.

    Args:
        case: the distributions.
        sizes: numbers of charges a plate of the batches.
        many: charges a plate of the field of many.
        heights: the values of t.
        points: number of points.
        seed: of all draws.
    """
    rng = generator(case, "cosines", seed)
    included, independent = case.draw(max(sizes), rng), case.draw(max(sizes), rng)
    i, j = torch.randint(min(sizes), (2, points), generator=rng)
    p, q = included[0][i], included[1][j]
    large = case.draw_many(many, rng)
    pair = pair_direction(p, q)
    for t in heights:
        x, z = on_segments(p, q, t)
        exact, of_many = case.field(x, z)[0], direction(x, z, large)
        found: dict[tuple[int | None, str], float] = {
            (None, "many_law"): mean_cosine(of_many, exact),
            (None, "pair_law"): mean_cosine(pair, exact),
        }
        for n in sizes:
            with_pair = direction(x, z, (included[0][:n], included[1][:n]))
            without = direction(x, z, (independent[0][:n], independent[1][:n]))
            found[n, "included_pair"] = mean_cosine(with_pair, pair)
            found[n, "included_many"] = mean_cosine(with_pair, of_many)
            found[n, "included_law"] = mean_cosine(with_pair, exact)
            found[n, "independent_many"] = mean_cosine(without, of_many)
            found[n, "independent_law"] = mean_cosine(without, exact)
        for (size, name), value in found.items():
            yield Number(case.name, case.dim, size, many, t, name, points, seed, value)


def measure_average(
    case: Case, size: int, batches: int, heights: Iterable[float], points: int, seed: int
) -> Iterator[Number]:
    """What a network is fitted to with ``endpoints = independent``, beside the exact field.

    The squared error to unit directions is least for their mean, which is no unit vector and need
    not be along the mean field.

    Args:
        case: the distributions.
        size: charges a plate of a batch.
        batches: number of batches, the same for every t.
        heights: the values of t.
        points: number of points.
        seed: of all draws.
    """
    rng = generator(case, "averages", seed)
    p, q = case.draw(points, rng)
    drawn = [case.draw(size, rng) for _ in range(batches)]
    for t in heights:
        x, z = on_segments(p, q, t)
        mean = torch.stack([direction(x, z, charges) for charges in drawn]).mean(0)
        mean = mean / torch.linalg.vector_norm(mean, dim=1, keepdim=True)
        exact = case.field(x, z)[0]
        found = {
            "averaged_law": mean_cosine(mean, exact),
            "averaged_z": float(mean[:, -1].mean()),
            "law_z": float(exact[:, -1].mean()),
        }
        for name, value in found.items():
            yield Number(case.name, case.dim, size, None, t, name, points, seed, value)


def measure_others(case: Case, many: int, points: int, seed: int) -> Iterator[Number]:
    """What has no t: the flux that leaves backward, and how much the lengths of pairs differ.

    Args:
        case: the distributions.
        many: charges a plate of the field of many.
        points: number of fresh source samples, and of pairs.
        seed: of all draws.
    """
    rng = generator(case, "others", seed)
    large = case.draw_many(many, rng)
    p, q = case.draw(points, rng)

    def of_many(x: Tensor, z: Tensor) -> FieldAt:
        return capacitor_field(x, z, *large, PLATE_DISTANCE)

    length = torch.hypot(torch.linalg.vector_norm(q - p, dim=1), p.new_tensor(PLATE_DISTANCE))
    found = {
        "backward_many": backward_share(of_many, p, OFFSET).mean(),
        "backward_law": backward_share(case.field, p, OFFSET).mean(),
        "spread_of_lengths": length.std() / length.mean(),
    }
    for name, value in found.items():
        yield Number(case.name, case.dim, None, many, None, name, points, seed, float(value))


def generator(case: Case, purpose: str, seed: int) -> torch.Generator:
    """A random generator for one case, purpose and seed, the same on every machine."""
    digest = hashlib.sha256(f"{case.name} {case.dim} {purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def summarise(numbers: Iterable[Number]) -> pd.DataFrame:
    """Mean and standard deviation over the seeds; of one seed the latter is empty."""
    table = pd.DataFrame(list(numbers)).astype({"charges": "Int64", "many": "Int64", "t": float})
    groups = table.groupby([*KEYS, "points"], sort=False, dropna=False)
    summary = groups["value"].agg(seeds="size", mean="mean", std="std").reset_index()
    return summary.round({"mean": 4, "std": 4})


def measure_all(seeds: Sequence[int], points: int) -> pd.DataFrame:
    """Everything that is measured, one row a number."""
    numbers: list[Number] = []
    for case in [*map(gaussian_case, DIMS), digits_case()]:
        for seed in seeds:
            numbers += measure(case, [CHARGES], MANY, HEIGHTS, points, seed)
            numbers += measure_others(case, MANY, points, seed)
        print(f"measured {case.name}, D = {case.dim}", file=sys.stderr, flush=True)
    for case in map(gaussian_case, NEED_DIMS):
        for seed in seeds:
            numbers += measure(case, NEED_CHARGES, NEED_MANY, NEED_HEIGHTS, points, seed)
            numbers += measure_average(case, CHARGES, BATCHES, NEED_HEIGHTS, points, seed)
        print(f"measured larger batches, D = {case.dim}", file=sys.stderr, flush=True)
    return summarise(numbers)


def tables(summary: pd.DataFrame) -> str:
    """The tables of the measured numbers, in Markdown."""
    parts = [(COSINES[name], over_heights(summary, name)) for name in SHOWN]
    parts += [
        ("Numbers without a t", without_height(summary)),
        ("Larger batches: cosine to many charges", larger_batches(summary)),
        ("More batches without the pair", more_batches(summary)),
    ]
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in parts)


def over_heights(summary: pd.DataFrame, quantity: str) -> str:
    """A mean cosine, a row a case and a column a t."""
    rows = main_part(summary)
    rows = rows[rows["quantity"] == quantity]
    lines = [[label(part), *values(part)] for part in parts_of(rows, "case", "dim")]
    return markdown(["", *(f"t = {t:g}" for t in rows["t"].unique())], lines)


def without_height(summary: pd.DataFrame) -> str:
    """The numbers without a t, a row a case."""
    rows = summary[summary["quantity"].isin(list(OTHERS))]
    lines = [[label(part), *values(part)] for part in parts_of(rows, "case", "dim")]
    return markdown(["", *OTHERS.values()], lines)


def larger_batches(summary: pd.DataFrame) -> str:
    """Cosines of batches of every size to the field of many, and the first that is enough."""
    rows = summary[summary["many"] == NEED_MANY]
    rows = rows[rows["quantity"].isin(["included_many", "independent_many"])]
    lines = []
    for part in parts_of(rows, "dim", "t", "quantity"):
        enough = part.loc[part["mean"] > ENOUGH, "charges"]
        first = f"{int(enough.min()):,}" if len(enough) else f"over {max(NEED_CHARGES):,}"
        first_row = part.iloc[0]
        endpoints = first_row["quantity"].removesuffix("_many")
        lines.append([label(part), f"{first_row['t']:g}", endpoints, *values(part), first])
    sizes = [f"N = {size:,}" for size in NEED_CHARGES]
    return markdown(["", "t", "endpoints", *sizes, f"above {ENOUGH:g} from N ="], lines)


def more_batches(summary: pd.DataFrame) -> str:
    """One batch and the mean of many, a row a case and t."""
    names = ["independent_law", *AVERAGES]
    rows = summary[summary["quantity"].isin(names) & summary["charges"].isin([CHARGES])]
    rows = rows[~rows["many"].isin([MANY])]  # the same points for one batch as for larger ones
    lines = []
    for part in parts_of(rows, "dim", "t"):
        cells = values(part.set_index("quantity").loc[names])
        lines.append([label(part), f"{part['t'].iloc[0]:g}", *cells])
    return markdown(
        ["", "t", "cosine of one batch to the distributions", *AVERAGES.values()], lines
    )


def main_part(summary: pd.DataFrame) -> pd.DataFrame:
    """The numbers of batches of ``CHARGES`` by dimension."""
    return summary[summary["many"] == MANY]


def parts_of(rows: pd.DataFrame, *keys: str) -> list[pd.DataFrame]:
    """The rows that agree in ``keys``, in the order in which they were measured."""
    return [part for _, part in rows.groupby(list(keys), sort=False)]


def label(part: pd.DataFrame) -> str:
    """The case of some rows."""
    first = part.iloc[0]
    return f"D = {first['dim']}" if first["case"] == "gaussians" else f"digits, D = {first['dim']}"


def values(part: pd.DataFrame) -> list[str]:
    """``mean ± std`` of each row, or the mean of one seed."""
    return [
        f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"
        for mean, std in zip(part["mean"], part["std"], strict=True)
    ]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


PANELS = {
    "included_pair": ("... and of the point's own pair alone", (0.65, 1.015)),
    "included_many": (f"... and of {MANY:,} fresh charges", (-0.6, 1.06)),
}
"""Titles and frames of the panels of the plot."""


def figure(summary: pd.DataFrame) -> Figure:
    """Cosine of the batch's field against t, a line a case: to the pair, and to many charges."""
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.85)
    drawn, panels = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    rows = main_part(summary)
    for ax, (quantity, (title, frame)) in zip(panels, PANELS.items(), strict=True):
        draw_lines(ax, rows[rows["quantity"] == quantity])
        ax.set(
            title=title, xlabel="t = z / L", ylabel="mean cosine", xlim=(-0.02, 1.02), ylim=frame
        )
    panels[1].axhline(0, color="black", lw=0.8)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    drawn.suptitle(
        f"Cosine between the field of a batch of {CHARGES} charges a plate, the point's own pair"
        " among them, ...\n(mean and standard deviation over seeds; the frames differ)",
        fontsize=10,
    )
    return drawn


def draw_lines(ax: Axes, rows: pd.DataFrame) -> None:
    """A line a case, with the standard deviation over the seeds."""
    colours = dict(zip(DIMS, sns.color_palette("viridis_r", len(DIMS)), strict=True))
    for part in parts_of(rows, "case", "dim"):
        real = part["case"].iloc[0] != "gaussians"
        ax.errorbar(
            part["t"],
            part["mean"],
            part["std"].fillna(0),
            marker="s" if real else "o",
            ls="--" if real else "-",
            color="#c2452d" if real else colours[part["dim"].iloc[0]],
            markersize=4,
            capsize=2,
            label=label(part),
            zorder=3,
        )


def write(summary: pd.DataFrame, out: Path) -> list[Path]:
    """The table and the plot, ``high_dimension.csv`` and ``.png``, in the folder ``out``.

    Raises:
        StorageError: a file could not be written; it is there as it was.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    drawn = figure(summary)
    drawn.savefig(picture, format="png", bbox_inches="tight", dpi=120)
    plt.close(drawn)
    contents = {"csv": summary.to_csv(index=False).encode(), "png": picture.getvalue()}
    paths = [out / f"{NAME}.{suffix}" for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomically(path, content)
    return paths


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError(message)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments ``out``, ``seeds`` (a list) and ``points``.

    Raises:
        SpecError: a wrong argument, in one line.
    """
    parser = _Parser(
        prog="python -m studies.batch_field",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--seeds", default="0-2", metavar="0,1,2", help="a list or range; 0-2")
    parser.add_argument("--points", type=int, default=500, metavar="N", help="a t and seed; 500")
    arguments = parser.parse_args(argv)
    arguments.seeds = parse_seeds(arguments.seeds)
    check_seeds(arguments.seeds)
    if not 2 <= arguments.points <= MAX_POINTS:
        raise SpecError(f"points: must be from 2 to {MAX_POINTS}, got {arguments.points}")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise SpecError(f"out: expected a folder, got the file {arguments.out}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        arguments = parse(argv)
        summary = measure_all(arguments.seeds, arguments.points)
        paths = write(summary, arguments.out)
    except (SpecError, StorageError) as error:
        print(f"studies.batch_field: {error}", file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        print("studies.batch_field: interrupted", file=sys.stderr)
        return INTERRUPTED
    print(tables(summary))
    for path in paths:
        print(path)
    return OK


if __name__ == "__main__":
    sys.exit(main())
