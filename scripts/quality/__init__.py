"""Measurements of ``scripts/showcase.py``: quality of samples, likelihood, memorisation."""
