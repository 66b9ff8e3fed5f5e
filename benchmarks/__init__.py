"""Measurements, each a command: `python -m benchmarks.NAME`. README.md and docs/ quote their figures."""
