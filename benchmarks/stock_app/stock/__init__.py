"""The benchmarks' work as a stock Flower app."""
