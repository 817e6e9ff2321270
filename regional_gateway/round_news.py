"""What the centre says of its tasks, folded without I/O: the latest round and state of each."""

from __future__ import annotations

from trellis.payloads import CentralTask, Round


class Rounds:
    """Decides which rounds are news. The parent's broker is believed always, a poll only if it is later."""

    def __init__(self) -> None:
        self._rounds: dict[str, tuple[Round, bytes]] = {}
        self._states: dict[str, CentralTask] = {}

    def heard(self, task: str, payload: bytes) -> bool:
        """Return whether a round from the parent's broker says another thing than the last; empty removes.

        Raises:
            PayloadError: It is no round.
        """
        if not payload:
            return self._rounds.pop(task, None) is not None
        came = (Round.parse(payload), payload)
        if self._rounds.get(task) == came:
            return False
        self._rounds[task] = came
        return True

    def polled(self, task: str, round_: Round) -> bytes | None:
        """Return the payload of a round asked for over HTTP, if it is later and says another thing."""
        known = self._rounds.get(task)
        # A poll's answer may have been overtaken by MQTT, which has come back meanwhile.
        if known is not None and round_.ts <= known[0].ts:
            return None
        # A server that was restarted stamps each answer anew, until its ServerApp speaks.
        if known is not None and round_ == known[0].model_copy(update={"ts": round_.ts}):
            return None
        payload = round_.to_bytes()
        self._rounds[task] = (round_, payload)
        return payload

    def latest(self, task: str) -> bytes | None:
        """Return the payload of the last round of `task`."""
        known = self._rounds.get(task)
        return known[1] if known else None

    def heard_state(self, said: CentralTask) -> None:
        """Remember what the server says of a task, for a gateway that gets the task only later."""
        self._states[said.task] = said

    def state(self, task: str) -> CentralTask | None:
        """Return what the server said last of `task`."""
        return self._states.get(task)

    def forget(self, task: str) -> None:
        """Drop what the server said of a task that it has removed."""
        self._states.pop(task, None)
