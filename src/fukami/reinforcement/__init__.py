"""Reinforcement learning: the Deep Q-Network."""
