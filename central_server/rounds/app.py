"""The ServerApp: one Flower run is one task, from its check-in to its end."""

from __future__ import annotations

import logging
import traceback
from functools import cache
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from central_server.logbook import APP_LOG, BookHandler, Logbook
from central_server.rounds.evaluation import server_data
from central_server.rounds.loop import RoundLoop
from models.backends import DefiningBackend, open_backend
from trellis.descriptor import parse_json
from trellis.errors import Canceled, TrellisError, Unavailable
from trellis.flower.backchannel import Brief, StateReport
from trellis.flower.channel import ServiceChannel
from trellis.identifiers import CENTRAL
from trellis.payloads import Reason, TaskState
from trellis.tier.app_log import configure_app_log
from trellis.tier.assembly import assemble

logger = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one task and report its end to the service."""
    configure_app_log()
    with ServiceChannel(str(context.run_config["task"])) as channel:
        brief = channel.hello(context.run_id)
        _keep_log(Path(brief.folder))
        try:
            finished = _loop(grid, channel, brief).run()
        except Canceled as error:
            channel.report(_ended(TaskState.CANCELED, "canceled", str(error)))
        except Unavailable:
            # The service is gone or going: whoever comes back resumes from the checkpoint.
            raise
        except OSError:
            # A full disk is not the task's failure: the service waits for room, and runs the task again.
            logger.exception("the run ends, to be tried again")
            raise
        except TrellisError as error:
            channel.report(_ended(TaskState.FAILED, "failed", str(error)))
        except Exception as error:
            # A bug, here or in a strategy: the operator sees it where the task is looked at.
            logger.exception("the round loop failed")
            summary = traceback.format_exception_only(error)[-1].strip()
            channel.report(_ended(TaskState.FAILED, "internal", summary))
            raise
        else:
            stopped = finished.stopped
            channel.report(
                StateReport(
                    state=TaskState.SUCCEEDED,
                    reason=None if stopped is None else Reason(code="stopped", message=stopped),
                    metrics=finished.metrics,
                )
            )


def _keep_log(folder: Path) -> None:
    handler = BookHandler(Logbook(folder / APP_LOG))
    for name in ("central_server", "trellis", "models"):
        logging.getLogger(name).addHandler(handler)


def _loop(grid: Grid, channel: ServiceChannel, brief: Brief) -> RoundLoop:
    descriptor = parse_json(brief.descriptor)

    @cache
    def backend() -> DefiningBackend:
        # A run that goes on after a crash, and does not evaluate here, is seconds sooner without torch.
        return open_backend(
            "torch",
            descriptor.model.name,
            shape=descriptor.data.shape,
            classes=descriptor.data.classes,
            seed=descriptor.train.seed,
        )

    return RoundLoop(
        descriptor=descriptor,
        tier=assemble(descriptor, CENTRAL, grid=grid, channel=channel),
        channel=channel,
        folder=Path(brief.folder),
        backend=backend,
        data=server_data(descriptor, brief.data),
    )


def _ended(state: TaskState, code: str, message: str) -> StateReport:
    return StateReport(state=state, reason=Reason(code=code, message=message[:2000]))
