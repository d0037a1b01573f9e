"""The LangGraph saver over the run store: a node's rows exist if and only if its checkpoint does."""

from backend.adapters.db.checkpointer.codec import RecordedError
from backend.adapters.db.checkpointer.grouping import GroupCommit
from backend.adapters.db.checkpointer.saver import RunSaver
from backend.adapters.db.checkpointer.sending import LeaseLost

__all__ = ["GroupCommit", "LeaseLost", "RecordedError", "RunSaver"]
