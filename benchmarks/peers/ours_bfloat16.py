"""Proximo with its image network's products in bfloat16."""

from __future__ import annotations

from ours import main

if __name__ == "__main__":
    main("ours_bfloat16", precision="bfloat16")
