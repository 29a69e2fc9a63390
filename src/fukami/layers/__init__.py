"""Layers and functions used by several models."""
