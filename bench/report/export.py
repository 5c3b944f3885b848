"""The tables as text: for a terminal, as Markdown, as LaTeX, and on the page ``report.html``."""

import itertools
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import decomposition

import jinja2
import pandas as pd

from bench.analysis.analysis import Analysis
from bench.analysis.words import few
from bench.metrics import METRICS
from bench.report.tables import (
    CAPTION,
    LEFT,
    Entry,
    Table,
    overall_tables,
    pages,
    pairs_table,
    task_table,
    title_of,
)
from bench.store.folder import file_name
from methods import METHODS

TERMINAL_ROWS = 40  # of a task
NARROW = {"changed", "95% interval", "sampling s"}  # the terminal has no room for them
WIDTH, WORDS, HEAD = 160, 44, 16  # of a line of the terminal, of a column of words, of its head
TEMPLATE = Path(__file__).parent / "report.html.j2"
PAGE_ROWS = 100  # of a task
MAX_NAMES = 10  # devices and commits
OPEN_PAIRS = 10  # more pairs than these are folded away
PICTURES = {
    "samples": "",
    "pairs": "The same held-out inputs for every method, each above its output.",
    "paths": "A few samples on their way from the source (left) to the target (right).",
    "neighbours": "The samples nearest to held-out images, and those farthest from them, above the"
    " training image that is nearest to each: a sample that equals it was learned by heart.",
    "curves": "",
}
"""The pictures of a task, and what is said above each."""


def terminal(analysis: Analysis) -> str:
    """The leaderboard for a terminal, under the names of the tasks; then the ranks over tasks."""
    tables = {task: task_table(analysis, task, TERMINAL_ROWS, NARROW) for task in analysis.tasks}
    named = [table._replace(title=task) for task, table in tables.items()]
    return "\n\n".join(map(plain, [*named, *overall_tables(analysis)]))


def plain(table: Table) -> str:
    """Lines of at most ``WIDTH`` letters: long words go on below, and last columns are left out."""
    grid = [[textwrap.wrap(name, HEAD, break_long_words=False) for name in table.head]]
    for row in table.rows:
        grid.append([textwrap.wrap(_marked(entry), WORDS) or [""] for entry in row])
    sizes = [max(len(line) for row in grid for line in row[k]) for k in range(len(table.head))]
    ends = list(itertools.accumulate(size + 2 for size in sizes))
    kept = sum(end <= WIDTH + 2 for end in ends)
    lines = [table.title]
    for lists in grid:
        for texts in itertools.zip_longest(*lists[:kept], fillvalue=""):
            parts = zip(texts, table.head, sizes, strict=False)
            aligned = [f"{t:<{k}}" if name in LEFT else f"{t:>{k}}" for t, name, k in parts]
            lines.append("  ".join(aligned).rstrip())
    left_out = f"in leaderboard.md also: {', '.join(table.head[kept:])}"
    notes = table.notes if kept == len(table.head) else [left_out, *table.notes]
    wrapped = textwrap.TextWrapper(WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join([*lines, *map(wrapped.fill, notes)])


def markdown(analysis: Analysis) -> str:
    """The tables as Markdown.

    Our own and not pandas' ``to_markdown``: that needs ``tabulate`` and escapes nothing.
    """
    tables = map(_markdown_table, pages(analysis))
    return "\n".join(["# Leaderboard", "", _markdown(CAPTION), *tables]) + "\n"


def _markdown_table(table: Table) -> str:
    cells = [
        map(_markdown, table.head),
        ("---" if name in LEFT else "---:" for name in table.head),
        *((_marked(entry, _markdown, "**{}**") for entry in row) for row in table.rows),
    ]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    notes = [f"- {_markdown(note)}" for note in table.notes]
    return "\n".join(["", f"## {_markdown(table.title)}", "", *lines, "", *notes])


def _markdown(text: str) -> str:
    """Text in which nothing is markup: neither Markdown, nor HTML, nor a formula."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]#|$~])", r"\\\1", text)


def latex(analysis: Analysis) -> str:
    r"""The tables as LaTeX, for ``\input``: a float a table."""
    head = r"% \usepackage{booktabs,graphicx}; a table that is wider than the line is shrunk to it"
    return "\n".join([head, *map(_latex_table, pages(analysis))]) + "\n"


def _latex_table(table: Table) -> str:
    marked = any(entry.bold for row in table.rows for entry in row)
    caption = f"{table.title}. {CAPTION}" if marked else f"{table.title}."
    # pandas' own escape leaves control characters, brackets at the start of a row, and Unicode.
    entries = [[_marked(entry, _latex, r"\textbf{{{}}}") for entry in row] for row in table.rows]
    tabular = pd.DataFrame(entries).to_latex(
        index=False,
        header=[_latex(name) for name in table.head],
        column_format="".join("l" if name in LEFT else "r" for name in table.head),
    )
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{_latex(caption)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        tabular.rstrip() + "}",
        *(rf"\par\smallskip\footnotesize {_latex(note)}" for note in table.notes),
    ]
    return "\n".join([*lines, r"\end{table}"])


def _marked(entry: Entry, escape: Callable[[str], str] = str, bold: str = "{}") -> str:
    """The text of an entry and its mark, in bold where it is."""
    text = escape(f"{entry.text} {entry.mark}".rstrip())
    return bold.format(text) if entry.bold else text


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\symbol{34}"}
LATEX |= {"[": "{[}", "*": "{*}"}  # after a row they would be arguments of its end
LATEX |= {"−": "$-$", "±": r"$\pm$", "×": r"$\times$", "²": r"$^2$", "…": r"\ldots{}"}
LATEX |= {"†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}"}


def _latex(text: str) -> str:
    """Text in which nothing is a command; other than ASCII and accents is written as its code."""
    escaped = "".join(map(_latex_letter, " ".join(text.split())))
    return escaped.replace("--", "-{}-")  # which would be a dash


def _latex_letter(letter: str) -> str:
    if letter in LATEX:
        return LATEX[letter]
    accented = "À" <= letter <= "ÿ" and decomposition(letter)
    if accented or (letter.isascii() and letter.isprintable()):
        return letter
    return "".join(LATEX.get(c, c) for c in letter.encode("unicode_escape").decode())


def page(analysis: Analysis, name: str, plots: list[Path]) -> str:
    """The page of the run ``name``; it looks for ``plots``, what was drawn, in ``plots/``."""
    rows, pictures = analysis.rows, [path.name for path in plots]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=name,
        caption=CAPTION,
        left=LEFT,
        tasks=[_task(analysis, task, pictures) for task in analysis.tasks],
        overall=overall_tables(analysis),
        **{
            kind: [picture for picture in pictures if picture.startswith(f"{kind}_")]
            for kind in ("critical", "field", "ablation", "bars")
        },
        methods=[METHODS[name] for name in sorted(set(rows["method"])) if name in METHODS],
        metrics=METRICS.values(),
        cells=len(rows),
        statuses=rows["status"].value_counts().to_dict(),
        commits=few(sorted(set(rows["commit"].dropna())), MAX_NAMES, ", "),
        devices=few(sorted(set(rows["device"].dropna())), MAX_NAMES, ", "),
    )


def _task(analysis: Analysis, task: str, pictures: list[str]) -> dict[str, Any]:
    """What the page shows of a task."""
    own = [(f"{file_name(kind, task)}.png", words) for kind, words in PICTURES.items()]
    pairs = int((analysis.pairs["task"] == task).sum())
    return {
        "name": task,
        "title": title_of(task),
        "table": task_table(analysis, task, PAGE_ROWS),
        "pairs": pairs_table(analysis, task, most=pairs) if pairs else None,
        "fold_pairs": pairs > OPEN_PAIRS,
        "plots": [(picture, words) for picture, words in own if picture in pictures],
    }
