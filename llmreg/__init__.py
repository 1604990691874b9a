"""llmreg: self-configuring multimodal deformable image registration with LLM-Morph."""

__version__ = "0.1.0"
