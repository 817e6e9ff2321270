"""Trellis's central Flower app: what is packed into the FAB, and nothing more."""
