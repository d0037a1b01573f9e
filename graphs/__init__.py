"""Graphs that ship with the company; each folder is one plug-in."""
