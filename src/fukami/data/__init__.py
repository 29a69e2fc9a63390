"""Datasets: formats, sources, augmentation and loaders that two families share."""
