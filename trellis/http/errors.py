"""Our errors as HTTP: `{"error": {"code", "message", "faults": […]}}`, and back again.

InvalidInput   400   `invalid`      Refused   403   its own code (409: conflict, revision; 404: unknown)
Unavailable    503   `unavailable`  other     500   `failed`
"""

from __future__ import annotations

from typing import Any

from trellis.errors import Fault, InvalidInput, Refused, TrellisError, Unavailable

_CONFLICTS = {"conflict", "revision"}


def status_of(error: TrellisError) -> int:
    """Return the HTTP status that says what `error` says."""
    match error:
        case InvalidInput():
            return 400
        case Refused(code="unknown"):
            return 404
        case Refused(code="token"):
            return 401
        case Refused():
            return 409 if error.code in _CONFLICTS else 403
        case Unavailable():
            return 503
        case _:
            return 500


def to_json(error: TrellisError) -> dict[str, Any]:
    """Return the body that carries `error`."""
    body: dict[str, Any] = {"message": str(error)}
    match error:
        case InvalidInput():
            body["code"], body["what"] = "invalid", error.what
            body["faults"] = [
                {"field": f.field, "problem": f.problem, "remedy": f.remedy} for f in error.faults
            ]
        case Refused():
            body["code"] = error.code
        case Unavailable():
            body["code"] = "unavailable"
        case _:
            body["code"] = "failed"
    return {"error": body}


def from_json(status: int, body: object, *, url: str) -> TrellisError:
    """Return the error that a response carries; a foreign body becomes a plain `TrellisError`."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return TrellisError(f"{url} answered HTTP {status} with something that is not Trellis's")
    code, message = error.get("code"), error["message"]
    if code == "invalid":
        items = error.get("faults")
        faults = [
            Fault(*(str(item.get(key, "")) for key in ("field", "problem", "remedy")))
            for item in (items if isinstance(items, list) else ())
            if isinstance(item, dict)
        ]
        return InvalidInput(str(error.get("what", "input")), faults)
    if code == "unavailable":
        return Unavailable(message)
    if code == "failed" or not isinstance(code, str):
        return TrellisError(message)
    return Refused(code, message)
