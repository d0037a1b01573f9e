"""A second graph, outside `graphs/`: what somebody else's package would add."""

from tests.acceptance.graphs.chain import CHAIN

__all__ = ["CHAIN"]
