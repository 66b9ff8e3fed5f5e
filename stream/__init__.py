"""Streams in, records out: events, sources, the consumer loop, checkpoints, the command line."""
