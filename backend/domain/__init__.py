"""The rules of the company: pure, without I/O and without a clock of its own."""
