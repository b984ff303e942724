"""A page that opens checkpoints in the browser: Python runs in it, and nothing is uploaded."""
