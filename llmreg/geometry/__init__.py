"""The only place that knows axis orders, units and LPS or RAS."""
