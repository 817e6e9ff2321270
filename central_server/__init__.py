"""The central server: life cycle and HTTP API, the Flower ServerApp, strategies, the round loop."""
