"""Selective Search (Uijlings et al. 2013): region proposals."""
