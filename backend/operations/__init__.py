"""What can be done: async functions, session first, never commit.

A start takes the driver's connection instead (ADR 46): part of its transaction if it is in one, else committed at once.
"""
