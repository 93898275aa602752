"""`python -m proximo` is `proximo`."""

from proximo.cli import main

if __name__ == "__main__":
    main()
