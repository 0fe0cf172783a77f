"""`python -m esper.cli`."""

from esper.cli import main

main()
