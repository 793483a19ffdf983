"""What a run cost and what it reached."""
