"""Settings of all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Before any test imports torch: workers that each take every core only get in each other's way, and no test may
# reach for a model hub.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The same examples in every run: a failure belongs to the change that caused it. To look further, run with
# --hypothesis-profile=default.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
