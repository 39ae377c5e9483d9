"""Infrastructure: errors, files, locks, GPUs, estimates, progress, identities; no result depends on it."""
