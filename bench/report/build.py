"""Everything that is made of the records: tables, plots and the report."""

from pathlib import Path

import pandas as pd

from bench.analysis.analysis import Analysis
from bench.analysis.words import few
from bench.report.export import latex, markdown, page
from bench.report.plots.draw import draw_plots
from bench.report.plots.fields import MAX_FIELDS
from bench.report.plots.style import Log
from bench.store.folder import file_name, write_atomically, writing


def write_tables(out: Path, analysis: Analysis | None = None) -> tuple[pd.DataFrame, list[Path]]:
    """The tables of an output folder; the results, and the paths.

    ``results.csv``, ``metrics_long.csv``, ``leaderboard.csv``, ``ablation_<axis>.csv``,
    ``pairs.csv``, ``overall.csv``, ``improvement.csv``, ``profiles.csv``, ``curves.csv``,
    ``pareto.csv``, and the leaderboard as ``leaderboard.md`` and
    ``leaderboard.tex``. ``analysis`` is that of the records, if they have been read.

    Raises:
        RecordError: at the first file that is not a record.
        StorageError: a table could not be written; it is there as it was.
    """
    analysis = analysis or Analysis.of(out)
    tables, texts = {"results": analysis.rows}, {}
    if len(analysis.rows):
        tables |= {"leaderboard": analysis.board, "pairs": analysis.pairs}
        tables |= {"metrics_long": analysis.metrics_long}
        if analysis.overall:
            tables |= {"overall": analysis.over_tasks("table")}
            tables |= {name: analysis.over_tasks(name) for name in ("improvement", "profiles")}
        tables |= {"curves": analysis.curves, "pareto": analysis.pareto}
        tables |= {file_name("ablation", axis): own for axis, own in analysis.ablations.items()}
        texts = {"leaderboard.md": markdown(analysis), "leaderboard.tex": latex(analysis)}
    texts = {f"{name}.csv": frame.to_csv(index=False) for name, frame in tables.items()} | texts
    paths = [out / name for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, text.encode())
    for old in set(out.glob("ablation_*.csv")) - set(paths):
        with writing(old):
            old.unlink(missing_ok=True)  # another runner may be as far
    return analysis.rows, paths


def write_report(
    out: Path,
    log: Log = lambda line: None,
    fields: int = MAX_FIELDS,
    analysis: Analysis | None = None,
) -> list[Path]:
    """All tables, plots and ``report.html`` of an output folder; returns what was written.

    ``log`` is called with a line for each plot, and for what is not drawn. Of fields at most
    ``fields`` are drawn; ``analysis`` is that of the records, if they have been read.

    Raises:
        RecordError: at the first file that is not a record.
        StorageError: a file could not be written; it is there as it was.
    """
    analysis = analysis or Analysis.of(out)
    if analysis.unknown:
        log(f"left out {few(analysis.unknown)}: metrics whose plug-in is not loaded (--plugin)")
    _, paths = write_tables(out, analysis)
    if not len(analysis.rows):
        return paths
    plots = draw_plots(analysis, out, log, fields)
    report = out / "report.html"
    write_atomically(report, page(analysis, out.resolve().name, plots).encode())
    return [*paths, *plots, report]
