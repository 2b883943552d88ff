"""One torch thread: on few cores the tiny models of the tests run many times faster."""

import torch

torch.set_num_threads(1)
