"""The MQTT bus of every tier: small messages, never tensors."""

from trellis.mqtt.bus import MqttBus
from trellis.mqtt.filters import match
from trellis.mqtt.memory import MemoryBroker
from trellis.mqtt.messages import Birth, Bus, BusMessage, Publication
from trellis.mqtt.reconnecting import FLEET, Limits
from trellis.mqtt.settings import BrokerSettings
from trellis.tls import TlsFiles

__all__ = [
    "FLEET",
    "Birth",
    "BrokerSettings",
    "Bus",
    "BusMessage",
    "Limits",
    "MemoryBroker",
    "MqttBus",
    "Publication",
    "TlsFiles",
    "match",
]
