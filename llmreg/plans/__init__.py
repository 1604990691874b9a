"""The plans file: its settings, their validation, and reading and writing it."""
