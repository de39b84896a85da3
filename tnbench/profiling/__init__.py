"""Measurements of speed: ratios from interleaved repeats in one run."""
