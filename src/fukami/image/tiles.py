"""Overlapping tiles of a large image."""

from collections.abc import Sequence


def compute_tile_starts(side: int, tile_size: int, overlap: int) -> Sequence[int]:
    """Compute the offsets of the tiles along a side; the last tile ends at the end of the side."""
    if side <= tile_size:
        return (0,)
    return *range(0, side - tile_size, tile_size - overlap), side - tile_size
