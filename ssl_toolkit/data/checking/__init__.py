"""Checking images before training on them."""
