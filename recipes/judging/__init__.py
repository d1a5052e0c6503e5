"""Figures and pictures of what was trained. Imports nothing of ours but the package and the metrics."""
