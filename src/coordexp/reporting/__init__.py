"""HTML reports of runs, comparisons and sweeps, and plots of training curves."""

from coordexp.reporting.comparison import write_comparison
from coordexp.reporting.report import headline, losses, write_report

__all__ = ["headline", "losses", "write_comparison", "write_report"]
