"""From raw cases to volumes in the dataset's common frame: fingerprint, plan, preprocess."""
