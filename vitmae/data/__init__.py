"""Images from memory and from files as one kind of batch: `datamodule.py` is the door, a file per source."""
