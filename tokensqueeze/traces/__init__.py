"""Anatomy of a trace: its thinking block, its steps, and where text and tokens meet."""
