"""Runs: beginning, resuming and carrying out a training, and tables of runs."""
