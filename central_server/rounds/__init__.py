"""The ServerApp: gathering, rounds, strategies, checkpoints, evaluation."""
