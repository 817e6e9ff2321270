"""A region's gateway: HTTP API, relay to MQTT, roster, task store."""
