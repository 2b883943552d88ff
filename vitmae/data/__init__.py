"""Images from memory and from files, as batches of one kind: `datamodule.py` is the door, one file per source."""
