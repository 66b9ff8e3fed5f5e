"""Signals, detectors, policies, the metric catalogue and the exporter: how a memory is watched."""
