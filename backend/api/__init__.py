"""The HTTP API: parse, call one operation, shape the answer."""
