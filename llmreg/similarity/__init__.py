"""What two images or two label maps have in common, and what a displacement field costs."""
