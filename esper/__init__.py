"""Esper: neural networks that grow while they train, recorded event by event on Kafka."""

__version__ = "0.1.0"
