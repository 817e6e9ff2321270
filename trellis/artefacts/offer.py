"""What a front says of a task's artefact, and the paths under which it says so and gives it.

GET /v1/tasks/<task>/artefacts/<runtime>   an `Offer`; 503, `not-yet` and Retry-After while it is being made
GET /v1/artefacts/<sha256>                 the file, or what a Range asks of it
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trellis.errors import ArtefactError, Refused, Unavailable
from trellis.faults import faults_of

RUNTIMES = ("onnx", "tflite")
"""The runtimes that train from an artefact; `torch` builds the model itself."""

MOST_BYTES = 512 * 1024**2
"""What a server or gateway keeps of one artefact at most; without weights in it, most have less than 1 MB."""

DIGEST = r"[0-9a-f]{64}"
PATHS = re.compile(rb"/v1/(?:tasks/[a-z0-9-]{1,63}/artefacts/[a-z0-9-]{1,63}|artefacts/[0-9a-f]{1,128})")
"""The raw paths that are artefacts', whether or not there is anything."""

Digest = Annotated[str, Field(pattern=f"^{DIGEST}$")]


class NotYet(Unavailable):
    """What was asked for is being made or fetched; the message says what goes on.

    Attributes:
        code: What says so in the body of a 503, which may as well come of a front that is away.
        again_s: After how long to ask again.
    """

    code = "not-yet"

    def __init__(self, message: str, *, again_s: float = 2.0) -> None:
        super().__init__(message)
        self.again_s = again_s


class Offer(BaseModel):
    """An artefact that is there to be fetched.

    Attributes:
        runtime: What trains from it.
        model: The name of the model in it.
        sha256: Of the file.
        size: Bytes of the file; `bytes` in JSON.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    runtime: str
    model: str
    sha256: Digest
    size: Annotated[int, Field(alias="bytes", ge=1)]

    def to_json(self) -> str:
        """Return the offer as a front says it; `parse` is the inverse."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def parse(cls, text: bytes, *, where: str) -> Offer:
        """Return the offer in `text`.

        Raises:
            ArtefactError: It is none; `where` says who made it.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ArtefactError(f"offer of an artefact by {where}", faults_of(error)) from None

    def require_size(self, limit: int, *, remedy: str = "") -> None:
        """Return if the file may be as large as it is.

        Raises:
            ArtefactError: It has more than `limit` bytes.
        """
        if self.size > limit:
            problem = f"has {self.size} bytes, at most {limit} are taken here"
            raise ArtefactError(f"artefact {self.sha256[:12]}…", f"{problem}{remedy and ': '}{remedy}")


def offer_path(task: str, runtime: str) -> str:
    """Return where a front offers the artefact of a task."""
    return f"/v1/tasks/{task}/artefacts/{runtime}"


def file_path(sha256: str) -> str:
    """Return where a front gives an artefact."""
    return f"/v1/artefacts/{sha256}"


def unknown_runtime(runtime: str) -> Refused:
    """Return the refusal of a runtime that no artefact is for."""
    due = " and ".join(RUNTIMES)
    return Refused("unknown", f"runtime {runtime[:40]!r} trains from no artefact; {due} do")


def unknown_file(sha256: str) -> Refused:
    """Return the refusal of a digest that no artefact here has."""
    return Refused(
        "unknown", f"there is no artefact {sha256[:64]!r} here: ask anew which one the task trains from"
    )
