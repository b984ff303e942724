"""``python -m torchzip``."""

from torchzip.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
