"""From a trained model and two images to a displacement field in the fixed image's own grid."""
