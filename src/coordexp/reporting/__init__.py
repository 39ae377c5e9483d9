"""The report: one HTML file that needs no network, and the images of the curves."""

from coordexp.reporting.comparison import write_comparison
from coordexp.reporting.report import headline, write

__all__ = ["headline", "write", "write_comparison"]
