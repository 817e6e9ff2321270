"""A device that says what it does and then hangs, so that a test can SIGKILL it at a known point."""

import json
import sys
import time
from pathlib import Path

from flwr.app import Message

from trellis.flower.link import FlowerLink


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


link = FlowerLink(sys.argv[1], folder=Path(sys.argv[2]), tls=None)
say(node_id=link.connect())
while (message := link.pull()) is None:
    time.sleep(0.02)
say(pulled=message.metadata.message_id)
if "--answer" in sys.argv:
    say(pushed=link.push(Message(message.content, reply_to=message)))
time.sleep(600)
