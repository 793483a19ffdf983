"""Comparing: what is run, what is kept of it, what it proves, and how it is shown."""
