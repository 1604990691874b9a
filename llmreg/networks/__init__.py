"""LLM-Morph, convolutional encoders and decoder around frozen language-model layers, and the networks beside it."""
