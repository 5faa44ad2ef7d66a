"""`python -m training.cli`."""

from training.cli.main import main

main()
