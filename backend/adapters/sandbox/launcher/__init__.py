"""The program that stands between the company and a command: it confines the command, watches it and kills it whole.

It runs alone (`python -I -S`), with an empty environment, from the standard library only, one thread.
"""
