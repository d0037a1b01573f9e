"""Programs that others' engines run: seven nodes with the same state, each in an environment of its own."""
