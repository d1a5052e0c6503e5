"""Modules of `evaluate`, a folder each, which is published as it is; their figures are plain functions."""
