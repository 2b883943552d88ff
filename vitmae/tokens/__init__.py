"""Patches, masks and positions: pure functions on tensors."""
