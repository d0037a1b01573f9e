"""The graph of the company."""
