"""A checkpoint, images and probes -> scores: what `vitmae.evaluate` does between its settings and its table."""
