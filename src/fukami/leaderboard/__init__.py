"""Leaderboard of the runs in a folder, with published results."""
