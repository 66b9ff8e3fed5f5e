"""Which topic-shift monitor goes with a backbone."""

from __future__ import annotations

from memory.backbones.backbone import Backbone
from monitors.topic_head import shipped_head
from monitors.topic_shift import TopicShiftMonitor
from monitors.trained_topic_shift import TrainedTopicShiftMonitor


def topic_monitor_for(backbone: Backbone) -> TrainedTopicShiftMonitor | TopicShiftMonitor:
    """Return the trained monitor for the very weights that it was trained on, else the plain distance.

    Examples
    --------
    >>> from memory.backbones import load_backbone
    >>> type(topic_monitor_for(load_backbone("hashing"))).__name__
    'TopicShiftMonitor'
    """
    if backbone.name == "minilm" and backbone.fingerprint == shipped_head().backbone:
        return TrainedTopicShiftMonitor(shipped_head(), backbone.mean)
    return TopicShiftMonitor(backbone.dim, mean=backbone.mean)
