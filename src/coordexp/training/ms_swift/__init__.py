"""Training with ms-swift: the only package that imports `swift`."""
