"""`python -m training.cli`."""

from training.cli.program import main

main()
