"""Faults, caused for real: what is expected of each, how often it is tried, and that nothing is lost."""
