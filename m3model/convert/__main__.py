"""`python -m m3model.convert`."""

from m3model.convert.checkpoint import main

main()
