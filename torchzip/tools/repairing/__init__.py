"""`torchzip.tools.repair`: a damaged checkpoint -> a sound one with all that could be saved."""
