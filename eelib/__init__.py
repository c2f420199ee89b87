"""Early-exit object detection: train, measure, route and explain."""

__version__ = "0.1.0"
