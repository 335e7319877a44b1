"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# The same examples in every run: a failure belongs to the change that caused it. To look further, run with
# --hypothesis-profile=default.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
