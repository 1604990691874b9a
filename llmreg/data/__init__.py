"""Raw datasets: dataset.json, cases, pairs, splits, verification, and the converters that make them."""
