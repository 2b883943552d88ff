"""Weights of every layout: `load.py` begins with them, `write.py` exports them."""
