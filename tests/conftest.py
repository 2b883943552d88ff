"""One torch thread: on few cores the tiny models of the tests run many times faster."""

import logging
import signal

import pytest
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests that are started with nohup would ignore it


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
