"""Runs a graph to its end: leases, journal, effects and the executor."""
