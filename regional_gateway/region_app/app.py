"""The region's app: one Flower run is one task's life in this region, until it ends at the centre."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TypeVar

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from regional_gateway.region_app.herald import Herald
from regional_gateway.region_app.member import RegionMember
from regional_gateway.region_app.telling_log import LOGGED, LogTeller
from trellis.descriptor import TaskDescriptor, parse_json
from trellis.errors import ConfigError
from trellis.flower.backchannel import GATEWAY, Above, Brief
from trellis.flower.channel import ServiceChannel
from trellis.flower.link import FlowerLink
from trellis.flower.link_loop import Halt, LinkLoop, Pace
from trellis.flower.questions import Membership
from trellis.tier.app_log import configure_app_log
from trellis.tier.assembly import assemble
from trellis.tier.checkpoints import Checkpoints
from trellis.tls import TlsFiles

logger = logging.getLogger(__name__)

T = TypeVar("T")

APP_LOG = "app.log"
_LOG_BYTES = 1024 * 1024

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Answer the tier above until the task ends there.

    Raises:
        Unavailable, OSError: The gateway is gone, or the disk is full; another run follows.
    """
    configure_app_log()
    with ServiceChannel(str(context.run_config["task"])) as channel:
        brief = channel.hello(context.run_id)
        _keep_log(Path(brief.folder), channel)
        try:
            _serve(grid, channel, brief)
        except Exception:
            # Whatever it is: the operator sees it where the task is looked at.
            logger.exception("the region's app ends, and another goes on")
            raise


def _serve(grid: Grid, channel: ServiceChannel, brief: Brief) -> None:
    halt = Halt()
    herald = Herald(channel, halt)
    member = _member(grid, channel, brief, herald)
    herald.start()
    LinkLoop(_link(brief), member.answer, events=herald, halt=halt, pace=Pace()).run()
    if herald.trouble is not None:
        raise herald.trouble


def _keep_log(folder: Path, channel: ServiceChannel) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(folder / APP_LOG, maxBytes=_LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    teller = LogTeller(channel)
    for name in LOGGED:
        for one in (handler, teller):
            logging.getLogger(name).addHandler(one)


def _member(grid: Grid, channel: ServiceChannel, brief: Brief, herald: Herald) -> RegionMember:
    descriptor = parse_json(brief.descriptor)
    region = _due(brief.region, "region")
    return RegionMember(
        membership=_membership(descriptor, region),
        regional_rounds=descriptor.regional_rounds_of(region),
        tier=assemble(descriptor, region, grid=grid, channel=channel),
        channel=channel,
        checkpoints=Checkpoints(Path(brief.folder)),
        give_up=herald.give_up,
    )


def _membership(descriptor: TaskDescriptor, region: str) -> Membership:
    return Membership(
        task=descriptor.task,
        revision=descriptor.revision,
        digest=descriptor.digest(),
        tier="regional",
        region=region,
        device=GATEWAY,
    )


def _link(brief: Brief) -> FlowerLink:
    above = _due(brief.above, "above")
    return FlowerLink(above.address, folder=Path(above.folder), tls=_tls(above))


def _tls(above: Above) -> TlsFiles | None:
    if above.ca is None or above.cert is None or above.key is None:
        return None
    return TlsFiles(Path(above.ca), Path(above.cert), Path(above.key))


def _due(value: T | None, field: str) -> T:
    if value is None:
        raise ConfigError("regional app", f"its gateway's brief names no {field!r}: gateway and app differ")
    return value
