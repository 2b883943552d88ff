"""A checkpoint, images and probes -> scores."""
