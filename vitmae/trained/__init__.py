"""A trained model at work: `model.py` is what `vitmae.load` returns."""
