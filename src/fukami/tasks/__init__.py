"""Families of systems: an update, a judgement and an answer each."""
