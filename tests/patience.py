"""How long a test waits for what must happen before it says that it does not."""

PATIENCE = 600.0
"""Seconds. Only what is broken takes so long, on a slow machine that does ten other things too: no test measures time
with it. Its own number has a test only where the number means something."""
