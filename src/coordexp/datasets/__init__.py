"""From public data sets to records: one file of annotations and images in, JSON lines out. No torch."""
