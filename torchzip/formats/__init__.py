"""The formats of checkpoints: bytes and records in, an object and its storages out."""
