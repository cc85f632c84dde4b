"""Batches: reading their files, working on their items, writing their results; `pit batch`."""
