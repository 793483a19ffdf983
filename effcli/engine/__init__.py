"""The nouns: what runs are made of. Never prints, never draws."""
