"""The suites of scripts/bench.py."""
