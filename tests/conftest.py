"""One thread a test process: the tests run in parallel processes, and sums keep their order."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

import torch

torch.set_num_threads(1)
torch.set_num_interop_threads(1)
