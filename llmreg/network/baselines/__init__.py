"""Published networks that LLM-Morph is compared with, trained and used like it."""
