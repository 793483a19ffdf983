"""Phases of pairs: what they start as, how coherent they are, and which concepts they hold."""
