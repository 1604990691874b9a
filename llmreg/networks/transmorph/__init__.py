"""TransMorph: a Swin transformer and a convolutional decoder."""
