"""CoordExp: teach a vision-language model to detect, with coordinate tokens and plain SFT."""

__version__ = "0.1.0"
