"""What can be done: async functions, session first, never commit."""
