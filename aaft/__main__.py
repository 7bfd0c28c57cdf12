"""``python -m aaft``."""

from aaft.cli import main

main()
