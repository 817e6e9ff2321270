"""`trellis logs`: what was said about a task, from the server's store and live from MQTT."""
