"""Text to learn from: read (`reading`), understood (`formats`), as tokens (`examples`), padded (`padding`), in order
(`loader`)."""
