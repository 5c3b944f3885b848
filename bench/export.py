"""The leaderboard as Markdown and as LaTeX: ``leaderboard.md``, ``leaderboard.tex``."""

import re
from collections.abc import Iterable
from unicodedata import decomposition

from bench.summary import CAPTION, LEFT, Entry, Grid


def markdown(grids: list[Grid]) -> str:
    """The tables of :func:`bench.summary.grids` as Markdown: tables of pipes."""
    return "\n".join(["# Leaderboard", "", _markdown(CAPTION), *map(_markdown_grid, grids)]) + "\n"


def _markdown_grid(grid: Grid) -> str:
    lines = [
        _pipes(map(_markdown, grid.head)),
        _pipes("---" if name in LEFT else "---:" for name in grid.head),
        *(_pipes(map(_markdown_entry, row)) for row in grid.rows),
    ]
    notes = [f"- {_markdown(note)}" for note in grid.notes]
    return "\n".join(["", f"## {_markdown(grid.title)}", "", *lines, "", *notes])


def _pipes(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _markdown_entry(entry: Entry) -> str:
    text = _markdown(entry.text)
    return f"**{text}**" if entry.bold else text


def _markdown(text: str) -> str:
    """Text in which nothing is markup: neither Markdown, nor HTML, nor a formula."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]#|$~])", r"\\\1", text)


def latex(grids: list[Grid]) -> str:
    r"""The tables of :func:`bench.summary.grids` as LaTeX, for ``\input``: a float a table."""
    return "\n".join([LATEX_HEAD, *map(_latex_grid, grids)]) + "\n"


LATEX_HEAD = (
    r"% \usepackage{booktabs,graphicx}; a table that is wider than the line is shrunk to it"
)


def _latex_grid(grid: Grid) -> str:
    marked = any(entry.bold for row in grid.rows for entry in row)
    caption = f"{grid.title}. {CAPTION}" if marked else f"{grid.title}."
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\small",
            rf"\caption{{{_latex(caption)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{''.join('l' if name in LEFT else 'r' for name in grid.head)}}}",
            r"\toprule",
            _ampersands(map(_latex, grid.head)),
            r"\midrule",
            *(_ampersands(map(_latex_entry, row)) for row in grid.rows),
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip\footnotesize {_latex(note)}" for note in grid.notes),
            r"\end{table}",
        ]
    )


def _ampersands(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex_entry(entry: Entry) -> str:
    text = _latex(entry.text)
    return rf"\textbf{{{text}}}" if entry.bold else text


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "[": "{[}",  # after a row they would be arguments of its end
    "*": "{*}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "²": r"$^2$",
    "…": r"\ldots{}",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
}


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
