"""What a file would have Python do, of any file: `scan.scan` is the function."""
