"""What a reader sees: terminal, Markdown, TeX, HTML and plots."""

from bench.report.build import write_report, write_tables
from bench.report.export import terminal

__all__ = ["terminal", "write_report", "write_tables"]
