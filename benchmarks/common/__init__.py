"""Code that several benchmarks import, and small recipes and loops that they run."""
