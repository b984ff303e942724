"""What can be recovered of damaged checkpoints: the object, with the storages that are whole."""
