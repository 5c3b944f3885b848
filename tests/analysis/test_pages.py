"""The numbers in the pages of the results are those of the CSV files beside them."""

from pathlib import Path

import pytest

from tests.analysis.pages import marked, problems

ROOT = Path(__file__).parents[2]
PAGES = sorted({ROOT / "README.md", *(ROOT / "results").glob("*/*.md")})

FILE = """task,method,setting,w2_mean,w2_std,landed,train_seconds,seed
a,fm,,0.2749,0.0141,1.0,120,0
a,efm,L=6,-1.25,0.5,0.987,3600,0
a,efm,L=30,12345.6,0.5,0.5,60,0
b,fm,,0.5,0.1,1.0,60,0
b,fm,,0.7,0.1,1.0,60,1
"""
MARK = (
    "<!-- from: own.csv; task=a; columns=method, setting, w2_mean w2_std, landed, -; without=x -->"
)
TABLE = """| | | W2 | landed | |
|---|---|---:|---:|---|
| x | | 7 | | |
| `fm` (plain) | | **0.275 ±0.014** † | 100% | 8 |
| efm | L=6 | -1.2 (.50) | 98.7% | 9 |
| efm | L=30 | 12,346 (.5) | 50% | |
"""


def problems_of(folder: Path, table: str, mark: str = MARK) -> list[str]:
    (folder / "own.csv").write_text(FILE)
    page = folder / "page.md"
    page.write_text(f"# Title\n\n{mark}\n\n{table}\nThe end: 9.99.\n")
    assert marked(page) == 1
    return problems(page)


def test_what_is_rounded_is_the_same(tmp_path: Path) -> None:
    assert problems_of(tmp_path, TABLE) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0.275", "0.276", "0.276 is printed for w2_mean, which is 0.2749"),
        ("0.014", "0.015", "for w2_std"),
        ("98.7%", "98.8%", "for landed"),
        ("12,346", "12,345", "for w2_mean"),
        ("-1.2", "1.2", "for w2_mean"),
        ("| L=30", "| L=3", "0 rows of the file"),
        ("`fm`", "`ifm`", "0 rows of the file"),
        ("12,346 (.5)", "12,346", "has 1 numbers for 'w2_mean w2_std'"),
    ],
)
def test_what_differs_is_found(old: str, new: str, words: str, tmp_path: Path) -> None:
    found = problems_of(tmp_path, TABLE.replace(old, new))
    assert found
    assert words in " ".join(found)


def test_medians_units_and_tasks_as_columns(tmp_path: Path) -> None:
    mark = (
        "<!-- from: own.csv; median; columns=method, w2_mean[task=b], train_seconds[task=a]/60 -->"
    )
    table = "| | b | minutes |\n|---|---|---|\n| fm | .60 | 2 |\n"
    assert problems_of(tmp_path, table, mark) == []
    assert len(problems_of(tmp_path, table.replace(".60", ".61").replace("2 |", "3 |"), mark)) == 2
    assert "2 rows" in problems_of(tmp_path, table, mark.replace("median; ", ""))[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_say_what_their_files_say(page: Path) -> None:
    assert problems(page) == []


def test_there_are_marked_pages() -> None:
    assert sum(map(marked, PAGES)) >= 2
