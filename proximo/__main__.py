"""`python -m proximo` is `proximo`, and so is the installed command."""

from __future__ import annotations

import sys


def main() -> None:
    """Import the command (torch takes a second or two) and run it; Ctrl-C ends it quietly at any moment."""
    try:
        from proximo.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
