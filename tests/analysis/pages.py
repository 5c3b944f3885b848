"""Compares the numbers in a page's tables with the CSV files beside it.

A comment above a Markdown table says where its numbers are from:

    <!-- from: leaderboard.csv; task=gaussian_to_digits; columns=method, w2_mean w2_std, landed -->

After the name of the file, relative to the page, clauses stand between semicolons: ``columns`` has
for each column of the table the columns of the file whose values its cells show, in that order
(``0.21 ±0.01`` shows two); ``-`` is not compared. ``name/60`` is in minutes; ``name[seed=0]`` is of
the rows with that value alone. ``method`` and ``setting`` choose the row: of a method the first
word counts, so ``efm (as published)`` is efm. ``median`` takes medians over the rows of a method
and setting. Any other ``key=value`` chooses rows; ``without=a / b`` names rows that are not in the
file.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

MARK = re.compile(r"<!-- from: ([^>]*?) -->\s*?\n\s*?\n?((?:\|.*(?:\n|$))+)")
NUMBER = re.compile(r"[-−]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)%?")
KEYS = ("method", "setting")


def problems(page: Path) -> list[str]:
    """What is printed in the marked tables of a page and is not what its CSV files say."""
    return [
        f"{page.name}: {line}"
        for source, table in MARK.findall(page.read_text(encoding="utf-8"))
        for line in _problems(page.parent, source, table)
    ]


def marked(page: Path) -> int:
    """The number of tables of a page that say where their numbers are from."""
    return len(MARK.findall(page.read_text(encoding="utf-8")))


def _problems(folder: Path, source: str, table: str) -> Iterator[str]:
    file, *clauses = (part.strip() for part in source.split(";"))
    given = dict(clause.partition("=")[::2] for clause in clauses)
    columns = [name.strip() for name in given.pop("columns").split(",")]
    without = [name.strip() for name in given.pop("without", "").split("/")]
    median = given.pop("median", None) is not None
    rows = _where(pd.read_csv(folder / file, dtype=dict.fromkeys(KEYS, str)), given)
    for line in table.splitlines()[2:]:
        cells = [re.sub(r"[*`†‡§]", "", cell).strip() for cell in line.split("|")[1:-1]]
        names = {spec: cell for spec, cell in zip(columns, cells, strict=True) if spec in KEYS}
        if cells[0] in without:
            continue
        own = rows
        for key, text in names.items():
            wanted = text.split(" ")[0].rstrip(",") if key == "method" else text
            own = own[own[key].fillna("") == wanted]
        for spec, cell in zip(columns, cells, strict=True):
            if spec not in (*KEYS, "-") and cell:
                yield from (f"{line.strip()}: {text}" for text in _compare(own, spec, cell, median))


def _where(rows: pd.DataFrame, given: dict[str, str]) -> pd.DataFrame:
    for key, value in given.items():
        rows = rows[rows[key].astype(str) == value]
    return rows


def _compare(rows: pd.DataFrame, spec: str, cell: str, median: bool) -> Iterator[str]:
    """The numbers of a cell beside the values of the columns that it shows."""
    names, printed = spec.split(" "), NUMBER.findall(cell)
    if len(names) != len(printed):
        yield f"{cell!r} has {len(printed)} numbers for {spec!r}"
        return
    for name, text in zip(names, printed, strict=True):
        column, choice, divisor = re.fullmatch(r"([\w.]+)(?:\[(.*?)\])?(?:/(\d+))?", name).groups()  # type: ignore[union-attr]
        own = _where(rows, dict([choice.split("=")]) if choice else {})[column]
        if len(own) != 1 and not (median and len(own)):
            yield f"{len(own)} rows of the file for {name}"
            continue
        value = own.median() / int(divisor or 1) * (100 if text.endswith("%") else 1)
        plain = text.rstrip("%").replace(",", "").replace("−", "-")
        digits = len(plain.partition(".")[2])
        if not abs(value - float(plain)) <= 0.5 * 10**-digits * (1 + 1e-9):
            yield f"{text} is printed for {name}, which is {value:.6g}"
