"""Training a fold."""
