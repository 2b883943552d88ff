"""One torch thread: on few cores the tiny models of the tests run many times faster."""

import logging

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def closed_logs():
    """The log file of a run in this process is closed with the test, not in one that comes later."""
    root = logging.getLogger()
    before = set(root.handlers)
    yield
    for handler in set(root.handlers) - before:
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()
