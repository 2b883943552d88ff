"""One file per format of weights: its reading and its writing."""
