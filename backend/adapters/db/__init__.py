"""The database: engine, tables and the LangGraph checkpointer."""
