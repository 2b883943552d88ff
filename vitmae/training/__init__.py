"""The training loop: callbacks, checkpoints and loggers; `fit.py` puts them together."""
