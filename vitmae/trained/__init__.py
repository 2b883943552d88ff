"""Trained models: `model.py` holds the class that `vitmae.load` returns."""
