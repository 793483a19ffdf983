"""Comparing: what is run, what is kept of it, what it proves."""
