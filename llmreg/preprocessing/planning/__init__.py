"""The planner: every decision is a small function that gives its reason.

``documentation/planning.md`` lists the rules with their sources and measurements.
"""
