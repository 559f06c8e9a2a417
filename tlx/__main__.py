"""`python -m tlx` is `tlx`."""

from tlx.cli import main

main()
