"""Declared handlers and projections, and the workers that run them."""
