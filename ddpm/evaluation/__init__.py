"""Evaluation of models and images: metrics, their reference data, and reports of them."""
