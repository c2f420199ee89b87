"""Commands killed at every write: `make kill` runs them all, `tests/test_kill.py` a few points of each."""
