"""Scanners and linters, each a program or rule set run over a copy of a commit, each failing closed."""
