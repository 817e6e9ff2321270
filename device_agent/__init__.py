"""The device agent: takes tasks from MQTT, trains on the device's own data, answers through Flower."""
