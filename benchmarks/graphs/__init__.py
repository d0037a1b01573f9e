"""Graphs that benchmarks let the company run, as plug-ins of somebody else would bring them."""
