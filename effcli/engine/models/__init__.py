"""Language models and what they do once trained."""
