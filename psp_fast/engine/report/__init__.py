"""What an evaluation looks like: best and worst images, plots of the classes, one page."""

from psp_fast.engine.report.writing import check_report, write_report

__all__ = ["check_report", "write_report"]
