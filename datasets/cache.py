"""Where things are kept that take long to make and can be made again at any time."""

import os
from pathlib import Path

CACHE = "BENCH_CACHE"
"""The environment variable that names another folder."""


def cache_folder() -> Path:
    """The folder of the cache: ``BENCH_CACHE``, else the usual one of the user; may not exist.

    That is ``field-matching-bench`` in ``XDG_CACHE_HOME``, else in ``~/.cache``. Everything in it
    can be removed at any time.
    """
    if own := os.environ.get(CACHE):
        return Path(own).expanduser()
    usual = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(usual) / "field-matching-bench"
