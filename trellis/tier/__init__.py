"""What every tier that aggregates is made of, the centre or a region: a SuperLink, its apps, their rounds."""
