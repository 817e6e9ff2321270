"""Flower makes messages only in a process that is some run's task: this one plays run 1's."""

from __future__ import annotations

from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.run_id = 1
TaskIdentity.task_id = 1
TaskIdentity.node_id = 1
