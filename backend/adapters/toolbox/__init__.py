"""The tools of a role in a worktree, with exactly the names and arguments that models are offered.

`WorktreeToolbox` is in `backend.adapters.toolbox.worktree`; searches run in a process that imports `files` alone.
"""
