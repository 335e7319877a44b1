"""``python -m pope_fast.cli``."""

from pope_fast.cli import main

main()
