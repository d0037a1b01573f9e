"""The schema of the run store as a chain of revisions, applied by `backend.adapters.db.migrate`."""
