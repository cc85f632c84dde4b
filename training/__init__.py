"""Offline: preference data in, checkpoint directories out."""
