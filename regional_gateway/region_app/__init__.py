"""The app on a region's SuperLink: a Flower server to its members, a Flower client of the tier above."""
