"""A second graph, outside `graphs/`, in two versions: what somebody else's package would add."""

from tests.acceptance.graphs.chain import CHAIN, SECOND_CHAIN

__all__ = ["CHAIN", "SECOND_CHAIN"]
