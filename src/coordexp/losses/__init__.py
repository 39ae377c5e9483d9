"""The objective in pure torch: terms at a coordinate slot, terms of a box, and their sum over a batch."""
