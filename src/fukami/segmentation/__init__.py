"""Semantic segmentation: FCN and SegNet."""
