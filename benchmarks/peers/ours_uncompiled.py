"""Proximo with `--compile off`."""

from __future__ import annotations

from ours import main

if __name__ == "__main__":
    main("ours_uncompiled", "off")
