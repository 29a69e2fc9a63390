"""Layers and functions that two networks share."""
