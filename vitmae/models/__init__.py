"""The objectives, one file each; `objective.py` is what they share."""
