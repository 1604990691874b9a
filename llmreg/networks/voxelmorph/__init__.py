"""VoxelMorph: a U-Net that predicts a stationary velocity."""
