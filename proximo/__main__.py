"""`python -m proximo` is `proximo`."""

from proximo.cli import main

main()
