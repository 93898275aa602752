"""The forward pass that learning from text and generating it share."""
