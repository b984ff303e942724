"""Adapters of low rank, and what becomes of a base when they are merged into it."""
