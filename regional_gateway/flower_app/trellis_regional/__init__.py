"""Trellis's regional Flower app: what is packed into the FAB, and nothing more."""
