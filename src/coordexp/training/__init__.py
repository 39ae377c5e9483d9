"""Training: launching, checkpoints, augmentation and collation; `ms_swift` runs it."""
