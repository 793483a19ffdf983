"""Which passages a model reads: what they are worth, how they are drawn, and what that costs."""
