"""From public data sets to records: one file of annotations and pictures in, JSON lines out. No torch."""
