"""A trained model as one zip file for others."""
