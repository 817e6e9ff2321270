"""The Flower pieces: SuperLink, front, grid and link, built on flwr 1.41."""
