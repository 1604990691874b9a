"""One HTML page for a model, predictions or a benchmark: figures, plots, and slices to scroll through."""
