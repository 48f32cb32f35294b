"""What an evaluation looks like: best and worst images, plots of the classes, one page."""

from psp_fast.engine.report.writing import write_report

__all__ = ["write_report"]
