"""Trellis: federated learning for fleets of edge devices, the contract that every tier shares."""

__version__ = "0.1.0"
