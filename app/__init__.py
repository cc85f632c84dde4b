"""The serving half: an improvement loop over language models, and the HTTP server around it."""

__version__ = "0.1.0"
DEFAULT_URL = "http://127.0.0.1:8000"
"""Where the server listens, and the clients look for it, unless they are told."""
