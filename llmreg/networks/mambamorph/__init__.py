"""MambaMorph: state-space layers and a convolutional decoder."""
