"""A run: its directory, optimiser, callbacks, checkpoints and loggers; `fit.py` puts them together."""
