"""Weights of few bits: their codes, the layers that train them, the file that holds them."""
