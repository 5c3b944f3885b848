"""What is said beside the leaderboard: Markdown, LaTeX, the report, defaults and budgets."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis.analysis import Analysis
from bench.analysis.fairness import budget, comparability, fairness
from bench.analysis.leaderboard import leaderboard
from bench.analysis.overall import compare_ranks
from bench.analysis.significance import pairs
from bench.config.plugins import load_plugin
from bench.metrics import METRICS
from bench.report import terminal, write_report
from bench.report.__main__ import main
from bench.report.export import latex, markdown, plain
from bench.report.plots.charts import critical_difference_figure
from bench.report.tables import Entry, Table, pages
from methods import METHODS
from tests.analysis.made import (
    EIGHT,
    ROLL,
    Record,
    analysis,
    record,
    results,
    stored,
    the,
    w2,
)

DIGITS = "gaussian_to_digits"
NASTY = ["a_b", "50%", "x&y", "$z$", "#1", "p|q", "{c}", "~^", "b\\n", "*[s]*", "<i>", "--", '"q"']


def made_of(methods: dict[str, float], seeds: int = 5) -> list[Record]:
    """Records on three tasks, of methods with these mean W2."""
    rng = np.random.default_rng(0)
    return [
        record(method, seed, task, metrics=w2(mean + rng.normal() / 100), steps=2000)
        for task in (EIGHT, ROLL, DIGITS)
        for method, mean in methods.items()
        for seed in range(seeds)
    ]


def usual() -> list[Record]:
    made = made_of({"fm": 1.0, "ot-cfm": 1.0, "vp": 2.0})
    why = "skipped", "cannot start from data"
    skipped = [record("pfgm", s, ROLL, *why, steps=2000) for s in range(5)]
    return [
        *made,
        *skipped,
        *[record("pfgm", s, EIGHT, metrics=w2(3.0), steps=2000) for s in range(5)],
    ]


# Markdown and LaTeX


def markdown_rows(text: str) -> list[list[str]]:
    """The cells of every line of a table; an escaped pipe divides nothing."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_marks_the_best_and_what_does_not_differ() -> None:
    text = markdown(analysis(usual()))
    title = text[text.index("## Gaussian to 8 Gaussians\n") :]
    table = markdown_rows(title[: title.index("- best")])
    head, _, *rows = table
    costs = ["95% interval of W2", "landed", "NFE", "training s", "seeds"]
    assert head == ["rank", "method", "W2", "score", *costs]
    assert all(len(row) == len(head) for row in rows)
    values = {row[1]: row[2] for row in rows}
    best, other = sorted(("fm", "ot-cfm"), key=lambda name: values[name].strip("*"))
    assert re.fullmatch(r"\*\*[01]\.\d{3} ±0\.0\d\d\*\*", values[best])
    assert values[other].endswith(" †")
    assert re.fullmatch(r"[12]\.\d{3} ±0\.\d{3}", values["vp"])
    assert values["target vs target"] == "0.100 ±0.000"
    intervals = {row[1]: row[4] for row in rows}
    low, high = map(float, intervals["vp"].split(" to "))
    assert low < 2 < high
    assert high - low < 0.1
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "", ""]
    assert [row[1] for row in rows[4:]] == ["references:", "target vs target"]
    assert [row[-1] for row in rows] == ["5"] * 4 + ["", "5"]
    assert "- pfgm: skipped: cannot start from data" in text
    assert f"not ranked on {DIGITS}".replace("_", r"\_") in text
    assert "no significant difference" in text
    for mark in ("†", "‡"):
        assert mark in text.splitlines()[2]  # the caption says what it means


def test_a_result_of_one_seed_is_marked_as_not_tested() -> None:
    rows = results([record("fm", metrics=w2(1.0)), record("efm", metrics=w2(2.0))])
    text = markdown(Analysis(rows))
    assert "2.000 ‡" in text
    assert "2.000 †" not in text
    alone = markdown(analysis([record("fm", metrics=w2(1.0))]))
    assert "**1.000** |" in alone


def test_no_name_is_lost_in_markdown() -> None:
    text = markdown(analysis(made_of({name: k + 1.0 for k, name in enumerate(NASTY[:11])})))
    names = {row[1] for row in markdown_rows(text)}
    for name in NASTY[:11]:
        shown = name.replace("&", "&amp;").replace("<", "&lt;")
        escaped = re.sub(r"([\\`*_\[\]#|$~])", r"\\\1", shown)
        assert escaped in names
        assert re.sub(r"\\([\\`*_\[\]#|$~])", r"\1", escaped) == shown
    widths = [len(row) for row in markdown_rows(text)]
    assert set(widths) == {5, 8, 9}  # no cell has fallen apart


def latex_tables(text: str) -> list[tuple[int, list[str]]]:
    """The number of columns, and the rows, of every table."""
    found = []
    pattern = r"\\begin\{tabular\}\{([lr]+)\}\n\\toprule\n(.*?)\n\\bottomrule\n\\end\{tabular\}"
    for columns, body in re.findall(pattern, text, flags=re.DOTALL):
        found.append((len(columns), [line for line in body.splitlines() if line != r"\midrule"]))
    return found


def balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text.replace("\\\\", "")):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def test_latex_escapes_every_name() -> None:
    text = latex(analysis(made_of({name: k + 1.0 for k, name in enumerate(NASTY)})))
    tables = latex_tables(text)
    assert len(tables) == text.count(r"\begin{table}") == 7
    for columns, rows in tables:
        for row in rows:
            assert row.endswith(r" \\")
            assert len(re.findall(r"(?<!\\)&", row)) == columns - 1
            assert not row.startswith(("[", "*"))  # an argument of the row's end
    body = text.split("\n", 1)[1]
    assert balanced(body)
    assert not re.search(r"(?<!\\)#|(?<!\\)_|--", body)
    assert len(re.findall(r"(?<!\\)%", body)) == len(tables)  # after \resizebox
    plain = re.sub(r"\$(\\pm|-|\^2|\\times)\$", "", body)
    assert not re.search(r"(?<!\\)\$", plain)
    names = [r"a\_b", r"50\%", r"x\&y", r"\$z\$", r"\#1", r"p\textbar{}q", r"\{c\}"]
    names += [r"\textasciitilde{}\textasciicircum{}", r"b\textbackslash{}n", r"{*}{[}s]{*}"]
    names += [r"\textless{}i\textgreater{}", "-{}-", r"\symbol{34}q\symbol{34}"]
    firsts = {cell.strip() for _, rows in tables for row in rows for cell in row.split(" & ")}
    assert set(names) <= firsts


def test_latex_writes_what_it_has_no_letter_for_as_a_code() -> None:
    rows = results([record("fm", status="failed", reason="é \u4e2d \0 \ud800 ß")])
    text = latex(Analysis(rows))
    assert r"é \textbackslash{}u4e2d" in text
    assert r"\textbackslash{}xdf" in text
    text.encode()
    assert "\0" not in text


def test_the_rows_of_a_table_are_cut_and_that_is_said() -> None:
    made = [record("efm", metrics=w2(k + 1.0), L=float(k)) for k in range(50)]
    text = markdown(analysis(made))
    assert (
        "best 30 of 50 settings by W2, of each method in turn; all are in leaderboard.csv" in text
    )
    assert "all 66 pairs are in pairs.csv" in text
    assert len(markdown_rows(text)) < 30 + 12 + 12 + 9


# The terminal and the report


def test_the_terminal_says_what_is_significant() -> None:
    text = terminal(analysis(usual()))
    eight = text.split("\n\n")[0]
    assert "best: " in eight
    assert "significantly better than vp, pfgm" in eight
    assert "no significant difference from " in eight
    assert "(paired t of logarithms over 5 seeds, Holm)" in eight
    assert "The budget of the trained methods is equal: steps=2000" in eight
    last = text.split("\n\n")[-1]
    assert last.startswith("Over the tasks")
    assert "Friedman test over 3 tasks and 3 competitors" in last
    assert f"pfgm: not ranked on {DIGITS} (not run)" in last
    assert f"not ranked on {ROLL} (skipped: cannot start from data)" in last


def test_no_line_of_the_terminal_is_wider_than_it() -> None:
    """Long settings go on in the next line, and columns that do not fit are in another file."""
    values = {name: 123456.789 for name, metric in METRICS.items() if metric.features is None}
    made = [
        record("efm", seed, metrics=values | w2(k + 1.0), L=float(k))
        for k in range(3)
        for seed in range(3)
    ]
    for one in made:
        one["cell"]["hyperparameters"] |= {f"long_{n}": f"{n}" * 20 + one["id"] for n in range(4)}
    text = terminal(analysis(made))
    assert max(map(len, text.splitlines())) <= 160
    table = text.split("\n\n")[0]
    for part in ("1.000", "score", "in leaderboard.md also: ", *(f"long_{n}=" for n in range(4))):
        assert part in table
    for one in made:
        assert one["id"] in table
    narrow = terminal(analysis(usual()))
    assert max(map(len, narrow.splitlines())) <= 160
    assert "leaderboard.md also" not in narrow


@pytest.mark.parametrize("size", range(60, 90))
def test_a_column_is_shown_as_long_as_it_fits(size: int) -> None:
    """Two columns and the two spaces between them."""
    texts = ["1" * 75, "2" * size]
    table = Table("title", texts, [[Entry("1"), Entry("2")]], [])
    lines = plain(table).splitlines()
    fits = 75 + 2 + size <= 160
    assert lines[1] == ("  ".join(texts) if fits else texts[0])
    assert max(map(len, lines[:3])) <= 160


class Tables(HTMLParser):
    """Counts the columns of every row of a page's tables."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[int]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in ("td", "th"):
            self.tables[-1][-1] += int(dict(attrs).get("colspan") or 1)


def test_the_report_has_the_tests(tmp_path: Path) -> None:
    for one in usual():
        stored(tmp_path, one)
    paths = {path.name for path in write_report(tmp_path)}
    written = ["pairs.csv", "overall.csv", "leaderboard.md", "leaderboard.tex", "metrics_long.csv"]
    assert {*written, "improvement.csv", "profiles.csv"} <= paths
    assert "critical_difference_noise_to_data.png" in paths
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'src="plots/critical_difference_noise_to_data.png"' in page
    assert page.count("<details open>") == 3  # six pairs and less
    assert "Friedman test over 3 tasks and 3 competitors" in page
    read = Tables()
    read.feed(page)
    assert len(read.tables) == 7
    for rows in read.tables:
        assert set(rows) <= {rows[0], rows[0] + 2, rows[0] + 1}  # reasons may span all columns
    found = pd.read_csv(tmp_path / "pairs.csv", keep_default_na=False)
    assert set(found["verdict"]) >= {"no significant difference"}


def test_a_diagram_that_is_no_longer_true_is_removed(tmp_path: Path) -> None:
    for one in usual()[:15]:  # one task
        stored(tmp_path, one)
    (tmp_path / "plots").mkdir()
    name = "critical_difference_noise_to_data"
    old = [tmp_path / "plots" / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    for path in old:
        path.write_bytes(b"old")
    write_report(tmp_path)
    assert not any(path.exists() for path in old)
    assert "critical_difference" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("size", "noise"), [(4, 0.1), (4, 99.0), (16, 3.0)])
def test_the_diagram_names_all(size: int, noise: float) -> None:
    names = [f"m{k} ($L$={k}, points=mix, endpoints=included)" for k in range(size)]
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(np.arange(size) + noise * rng.normal(size=(9, size)), columns=names)
    test = compare_ranks(scores)
    figure = critical_difference_figure(test)
    assert figure is not None
    (ax,) = figure.axes
    texts = {text.get_text().strip() for text in ax.texts}
    for name in names:
        assert any(name.replace("$", r"\$") in text for text in texts)
    figure.canvas.draw()
    labels = [text for text in ax.texts if "points" in text.get_text()]
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


# Metrics of plug-ins

PLUGIN = """
from bench.metrics import metric

@metric("mine", "My own distance", "distance", headline="plain", plotted=True)
def mine(samples, target):
    return 0.5
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[str]:
    """A file with a metric of its own, which is forgotten afterwards."""
    path = tmp_path / "own_metric.py"
    path.write_text(PLUGIN)
    yield str(path)
    METRICS.pop("mine", None)


def report_of(out: Path, *plugins: str) -> dict[str, str]:
    """The texts that ``python -m bench.report`` writes, and what it says."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        assert main([str(out), *(word for path in plugins for word in ("--plugin", path))]) == 0
    written = {path.name: path.read_text() for path in out.iterdir() if path.is_file()}
    return written | {"terminal": said.getvalue()}


def test_a_metric_is_found_in_every_table_and_its_absence_is_no_error(
    tmp_path: Path, plugin: str
) -> None:
    """Records of before the plug-in lack its metric; records of after it are also read without."""
    before, after = tmp_path / "before", tmp_path / "after"
    for seed in (0, 1):
        for method in ("fm", "efm"):
            made = record(method, seed, metrics=w2(1.0 + seed))
            stored(before, made)
            made["metrics"] |= {"mine": 7.125 + seed / 8, "mine_floor": 0.25}
            stored(after, made)
    without = report_of(after)
    assert "left out mine; mine_floor: metrics whose plug-in is not loaded" in without["terminal"]
    assert "mine" not in without["results.csv"]
    assert without["leaderboard.csv"] == report_of(before)["leaderboard.csv"]  # no setting either
    old = report_of(before, plugin)
    assert pd.read_csv(io.StringIO(old["leaderboard.csv"]))["mine_mean"].isna().all()
    assert "My own distance" not in old["terminal"]
    new = report_of(after, plugin)
    board = pd.read_csv(io.StringIO(new["leaderboard.csv"]))
    assert board["mine_mean"].tolist() == [7.1875, 7.1875, 0.25]  # the last between target sets
    assert board["mine_rank"].tolist()[:2] == [1, 1]
    assert "7.125" in new["results.csv"]
    for name in ("terminal", "report.html", "leaderboard.md", "leaderboard.tex"):
        assert "My own distance" in new[name]
        assert "7.188" in new[name]


def test_rows_of_before_a_metric_are_tables_without_it(plugin: str) -> None:
    """Rows from a file, or made before the plug-in was loaded, lack its columns altogether."""
    made = usual()
    rows = results(made)
    load_plugin(plugin)
    found = Analysis(rows)
    assert found.board["mine_mean"].isna().all()
    assert terminal(found) == terminal(analysis(made))
    assert len(found.pareto) > 0
    curve = dataclasses.replace(METRICS["mine"], curve=True)
    METRICS["mine"] = curve
    assert "mine" in Analysis(rows).curves


# Fairness


def hyper(method: str, dim: int = 2, **changed: Any) -> dict[str, Any]:
    """The defaults of a method, some of them changed."""
    return METHODS[method].create(dim, True).hyperparameters() | changed


def test_rows_say_which_settings_are_not_the_defaults() -> None:
    slow = record("fm", steps=2000, metrics=w2(1.0), **hyper("fm"))
    slow["cell"]["train"]["lr"] = 0.001
    slow["cell"]["eval"]["n"] = 500
    board = leaderboard(
        results(
            [
                record("efm", steps=2000, metrics=w2(1.0), **hyper("efm")),
                record("efm", steps=2000, metrics=w2(1.0), **hyper("efm", L=6.0, points="log")),
                slow,
                record("own", steps=2000, metrics=w2(1.0), strength=3.0),
                record("own", task="unknown", steps=4000, metrics=w2(1.0), strength=3.0),
            ]
        )
    )
    assert sorted(board.loc[board["method"] == "efm", "changed"]) == ["", "L=6, points=log"]
    assert the(board, method="fm")["changed"] == "lr=0.001, eval_n=500"
    assert the(board, method="own", task=EIGHT)["changed"] == ""
    assert (
        the(board, task="unknown", role="method")["changed"] == ""
    )  # nobody departs from it: said for all rows
    unknown = results([record("own", task="unknown", steps=4000, metrics=w2(1.0), strength=3.0)])
    assert "Not the defaults, in all rows: steps=4000." in budget(unknown)


def test_defaults_are_those_of_the_task() -> None:
    low, high = (hyper("efm", dim)["L"] for dim in (2, 64))
    rows = [
        record("efm", task=task, steps=2000, metrics={"sliced_w2": 1.0}, **hyper("efm", dim))
        for task, dim in ((EIGHT, 2), (DIGITS, 64))
    ]
    assert leaderboard(results(rows))["changed"].tolist() == ["", ""]
    if low != high:
        rows[1]["cell"]["hyperparameters"]["L"] = low
        assert the(leaderboard(results(rows)), task=DIGITS)["changed"] == f"L={low:g}"


def test_an_untrained_method_has_no_training_to_change() -> None:
    exact = {**record("fm-exact", steps=7, metrics=w2(1.0), **hyper("fm-exact")), "parameters": 0}
    assert the(leaderboard(results([exact])), method="fm-exact")["changed"] == ""


def test_the_report_shows_changes_only_where_there_are_some(tmp_path: Path) -> None:
    plain = [record("fm", s, steps=2000, metrics=w2(1.0 + s), **hyper("fm")) for s in (0, 1)]
    for number, made in enumerate((plain, [*plain, record("efm", metrics=w2(3.0), L=6.0)])):
        assert ("changed" in pages(analysis(made))[0].head) == bool(number)
        for one in made:
            stored(tmp_path / str(number), one)
        write_report(tmp_path / str(number))
        page = (tmp_path / str(number) / "report.html").read_text(encoding="utf-8")
        assert ('<th class="words">changed</th>' in page) == bool(number)
        assert ("L=6, steps=100" in page) == bool(number)


def test_an_equal_budget_is_said_to_be_equal() -> None:
    made = made_of({"fm": 1.0, "vp": 2.0})
    exact = {**record("fm-exact", metrics=w2(1.0)), "parameters": 0, "nfe": 51}
    words = budget(results([*made, exact]))
    assert words.startswith("The budget of the trained methods is equal: steps=2000, batch=512")
    assert "width=128" in words
    assert words.endswith("NFE: 50 (fm, vp), 51 (fm-exact).")


def test_the_budget_counts_weights_points_and_charges() -> None:
    made = made_of({"fm": 1.0, "vp": 2.0, "efm": 2.0})
    weights = {"fm": 50_562, "vp": 50_562, "efm": 58_331}
    for one in made:
        method = one["cell"]["method"]
        one["parameters"] = weights[method]
        one["cell"]["train"]["accumulate"] = 2 if method == "vp" else 1
        if method == "efm":
            one["cell"]["hyperparameters"]["charges"] = 1024
    exact = record("efm-exact", metrics=w2(1.0), charges=4096) | {"parameters": 0}
    words = budget(results([*made, exact]))
    assert "parameters=58,331 (efm), 50,562 (fm, vp)" in words
    assert "training points=1,024,000 (efm, fm), 2,048,000 (vp)" in words
    assert "charges=1,024." in words  # of the methods that have some; closed forms have no budget
    for one in made:  # as near as matched widths come: equal, and both ends are named
        one["parameters"] = {"fm": 50_562, "vp": 50_562, "efm": 51_331}[one["cell"]["method"]]
    assert "parameters=50,562 to 51,331." in budget(results(made)).partition("Equal are")[2]
    equal = budget(results([one for one in made if one["cell"]["method"] == "fm"]))
    assert "parameters=50,562, training points=1,024,000. NFE: 50." in equal


def test_another_budget_is_named_with_its_owner() -> None:
    made = made_of({"fm": 1.0, "vp": 2.0, "efm": 2.0})
    for one in made:
        if one["cell"]["method"] == "vp":
            one["cell"]["train"]["batch"] = one["batch"] = 64
            one["cell"]["network"]["width"] = 256
    words = budget(results(made))
    assert words.startswith("The budget of the trained methods is not equal: ")
    assert "batch=512 (efm, fm), 64 (vp)" in words
    assert "width=128 (efm, fm), 256 (vp)" in words
    assert "Equal are steps=2000, depth=3" in words
    assert "lr" not in words  # what may be tuned is no part of it


def test_a_sweep_of_all_methods_is_equal() -> None:
    made = [
        record(method, steps=steps, metrics=w2(1.0))
        for method in ("fm", "vp")
        for steps in (10, 20, 30, 40)
    ]
    assert "is equal: steps=10 / 20 / 30 / and 1 more, " in budget(results(made))
    assert "not equal: steps=10 / 20 / 30 / and 1 more (fm), 10 / 20 / 30 (vp)" in budget(
        results(made[:-1])
    )


def test_no_budget_without_results() -> None:
    assert budget(results([record("fm", status="failed", reason="no")])) == ""


def seen(hashes: list[tuple[str | None, str | None]]) -> pd.DataFrame:
    """Cells whose images were seen through these classifiers and Inception weights."""
    return results(
        [
            record("fm", seed, metrics=w2(1.0))
            | {"classifier_hash": k, "fid_weights_hash": f}
            | ({} if f else {"fid_reason": "none there"})
            for seed, (k, f) in enumerate(hashes)
        ]
    )


@pytest.mark.parametrize(
    ("hashes", "words"),
    [
        ([("a", None), ("a", None)], ""),
        ([("a", "x"), ("a", "x")], ""),
        (
            [("a", "x"), ("b", "x")],
            "fd_classifier and all that the classifier says are not comparable: they are of 2"
            " different networks.",
        ),
        (
            [("a", "x"), ("a", "y"), ("a", None)],
            "FID and KID are not comparable: they are of 2 different networks. 1 of 3 cells lack"
            " FID and KID (none there).",
        ),
    ],
)
def test_other_networks_are_named(hashes: list[tuple[str | None, str | None]], words: str) -> None:
    rows = seen(hashes)
    assert comparability(rows) == words
    assert fairness(rows).endswith(words or budget(rows))
    assert words in " ".join(terminal(Analysis(rows)).split())


def test_fid_train_of_other_numbers_of_samples_is_named_and_data_are_the_same() -> None:
    made = made_of({"fm": 1.0, "vp": 2.0, "efm": 3.0})
    for one in made:
        n = {"fm": 50_000, "vp": 1000, "efm": 0}[one["cell"]["method"]]
        one["cell"]["eval"]["fid_n"] = n
        one["metrics"] |= {"fid_train": 3.0} if n else {}
    rows = results(made)
    assert comparability(rows[rows["method"] == "fm"]) == ""
    assert comparability(rows).startswith(
        "fid_train is not comparable: it is of 1,000, 50,000 samples. "
    )
    assert comparability(rows).endswith(" cells lack fid_train.")
    assert len(pairs(rows)) == 9  # three a task
