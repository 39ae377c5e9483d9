"""HTML reports of runs, comparisons and sweeps, and plots of training curves."""
