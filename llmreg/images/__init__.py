"""Files of images, displacement fields, transforms and landmarks; the only place that knows file endings."""
