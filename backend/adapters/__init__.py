"""The outside world: database, models, git, sandbox, scanners, broker."""
