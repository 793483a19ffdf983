"""Train small language models for less, and prove what each saving is worth."""

__version__ = "0.1.0"
