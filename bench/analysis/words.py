"""Settings, names and numbers as text: on one line, of bounded length, empty where none applies."""

from collections.abc import Iterable

import pandas as pd

# Different reasons that stand in a note, and their length; ``results.csv`` has them whole.
MAX_WORDS, MAX_LENGTH = 3, 300
SPLIT = "eval_split"  # on which samples a row was evaluated; ``test`` goes without saying


def few(words: Iterable[str], most: int = MAX_WORDS, between: str = "; ") -> str:
    """The first of these, each once and on one line, and how many more there are."""
    distinct = list(dict.fromkeys(words))
    shown = [_one_line(text) for text in distinct[:most]]
    more = [f"and {len(distinct) - most:,} more"] if len(distinct) > most else []
    return between.join(shown + more)


def _one_line(text: str) -> str:
    """Text for a terminal or a table: no control characters, of bounded length."""
    text = "".join(c if c.isprintable() else " " for c in text[: 2 * MAX_LENGTH])
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 1]}…"


def name_of(method: str, setting: str) -> str:
    """A method with its setting: ``efm (L=6, sigma=0.1)``."""
    return f"{method} ({setting})" if setting else method


def settings_text(settings: pd.DataFrame) -> list[str]:
    """``L=6, sigma=0.1`` of each row; a value that is missing is left out."""
    unsaid = (SPLIT, "test")
    columns = [
        [
            f"{name}={value_text(value)}" if pd.notna(value) and (name, value) != unsaid else ""
            for value in column
        ]
        for name, column in settings.items()
    ]
    return [", ".join(filter(None, texts)) for texts in zip(*columns, strict=True)]


def value_text(value: object) -> str:
    """The value of a setting: 0.001 and not 1e-3, 6 and not 6.0, every digit where it has many."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))
    return str(value)


def format_value(mean: float, std: float | None = None) -> str:
    """``0.214 ±0.012``; empty for a value that does not apply."""
    if pd.isna(mean):
        return ""
    return f"{mean:.3f}" if std is None or pd.isna(std) else f"{mean:.3f} ±{std:.3f}"
