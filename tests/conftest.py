"""Threads cost more than they give on tiny tensors; set before torch is imported."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is no counterexample.
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")
