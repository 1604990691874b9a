"""Pretrained decoder layers: where they lie and how they are read."""
