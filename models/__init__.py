"""The model zoo, training backends, data sets and their checks."""
