"""Data sets: one file per source; what the sources share lies in `loader`, `augment` and `places`."""
