"""Hostile files, one named attack a row. ``python -m tests.hostile FOLDER`` writes them all."""
