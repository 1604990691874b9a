"""LLM-Morph, convolutional encoders and decoder around frozen language-model layers, and networks it is compared with."""
