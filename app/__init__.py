"""The serving half: an improvement loop over language models, and the HTTP server around it."""

__version__ = "0.1.0"
