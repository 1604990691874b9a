"""LLM-Morph: frozen language-model layers between two encoders and a decoder."""
