"""A Flower app for contract tests."""
