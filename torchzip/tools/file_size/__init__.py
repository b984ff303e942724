"""Where the bytes of a checkpoint go, and what could be saved of them."""
