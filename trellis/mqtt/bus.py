"""The bus on a real broker."""

from __future__ import annotations

from trellis.mqtt.connection import MqttDialer
from trellis.mqtt.messages import Birth, Publication
from trellis.mqtt.reconnecting import Limits, ReconnectingBus
from trellis.mqtt.settings import BrokerSettings


class MqttBus(ReconnectingBus):
    """A `Bus` over MQTT 3.1.1: fixed client id, clean session, jittered reconnects (`Backoff`).

    Raises:
        PayloadError: The will is no publication.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        will: Publication | None = None,
        birth: Birth = (),
        limits: Limits | None = None,
    ) -> None:
        super().__init__(MqttDialer(settings, will), birth=birth, limits=limits)
        self.settings = settings
        self.will = will
