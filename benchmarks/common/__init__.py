"""Modules that several benchmarks import, and small recipes and training loops that they run."""
