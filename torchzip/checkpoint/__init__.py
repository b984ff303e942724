"""What a user holds: lazy and whole checkpoints, and the writers."""
