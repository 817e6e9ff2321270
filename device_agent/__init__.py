"""A device's agent: MQTT task loop, eligibility and data checks, trainer, journal."""
