"""The report on a run: what is read, counted and replayed for it. `dashboards.report_page` writes the page."""

from __future__ import annotations

from stream.report.make import make_report
from stream.report.read_run import Run, read_run

__all__ = ["Run", "make_report", "read_run"]
