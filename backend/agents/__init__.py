"""The roles: facts in, typed reply out; the model call arrives as an argument."""
