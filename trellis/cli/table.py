"""Every command: where it is implemented, and its line in `trellis --help`.

A service is named here as text, so that nothing of it is imported before its command runs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One command.

    Attributes:
        name: What is typed after `trellis`.
        sources: `module:attribute` of each `typer.Typer` that makes it up; several are merged into one group.
        summary: Its line in `trellis --help`.
        examines_settings: It runs also where `trellis.toml` or a variable is wrong, and says so itself.
    """

    name: str
    sources: tuple[str, ...]
    summary: str
    examines_settings: bool = False


ENTRIES = (
    Entry("demo", ("models.demo_command:app",), "See a whole federation work on this machine."),
    Entry("init", ("trellis.cli.init:app",), "Write task.yaml, trellis.toml and keys to start from."),
    Entry("keys", ("trellis.keys.command:app",), "Make the fleet's keys and certificates."),
    Entry("broker", ("trellis.cli.broker:app",), "Run an MQTT broker for trials."),
    Entry("server", ("central_server.command:app",), "Run the central Flower server."),
    Entry("gateway", ("regional_gateway.command:app",), "Run a region's gateway."),
    Entry("device", ("device_agent.command:app",), "Run a device's agent."),
    Entry(
        "task",
        ("models.task_command:app", "trellis.cli.task.files:app", "trellis.cli.task.command:app"),
        "Validate, sign, post, run, list, show and cancel tasks.",
    ),
    Entry("devices", ("trellis.cli.devices:app",), "List a region's devices."),
    Entry("model", ("trellis.cli.model:app", "models.command:app"), "Fetch, evaluate and list models."),
    Entry("export", ("models.export.command:app",), "Export a model as ONNX or TFLite, to train or predict."),
    Entry("predict", ("models.predict_command:app",), "Run a trained or exported model on a data set."),
    Entry("watch", ("trellis.cli.watching.command:app",), "Watch rounds, gateways and devices live."),
    Entry("logs", ("trellis.cli.logs.command:app",), "Read a task's log, of all machines in one."),
    Entry(
        "doctor",
        ("trellis.cli.doctor.command:app",),
        "Look at this machine and the services, and say what to do.",
        examines_settings=True,
    ),
)
"""In the order of `trellis --help`."""
