"""The report: one HTML file that needs no network, and the pictures of the curves."""

from coordexp.report.comparison import write_comparison
from coordexp.report.page import headline, write

__all__ = ["headline", "write", "write_comparison"]
