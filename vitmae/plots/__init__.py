"""Tensors in, a matplotlib figure out; nothing is trained or written here."""
