"""Programs that decide: the tests gate, the scanners and the linters, each failing closed."""
