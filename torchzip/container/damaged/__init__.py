"""What is left of damaged files: the records of zip archives, the tensors of safetensors files."""
