"""Our errors cross HTTP as the classes they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.errors import (
    Canceled,
    DescriptorError,
    Fault,
    InvalidInput,
    MissingExtra,
    Refused,
    TrainingFailed,
    TrellisError,
    Unavailable,
)
from trellis.http.errors import from_json, status_of, to_json

URL = "http://127.0.0.1:1/x"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "code", "message", "faults", "what", "field"]), inner)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("error", "status", "comes_back_as"),
    [
        (DescriptorError("task", [Fault("a", "b", "c"), Fault("d", "e")]), 400, InvalidInput),
        (InvalidInput("request", "is empty"), 400, InvalidInput),
        (InvalidInput("request"), 400, InvalidInput),
        (Refused("token", "show one"), 401, Refused),
        (Refused("untrusted", "a stranger signed"), 403, Refused),
        (Refused("unknown", "no such task"), 404, Refused),
        (Refused("conflict", "another task"), 409, Refused),
        (Refused("revision", "older"), 409, Refused),
        (Unavailable("the broker is away"), 503, Unavailable),
        (TrainingFailed("loss is NaN"), 500, TrellisError),
        (Canceled("called off"), 500, TrellisError),
        (MissingExtra("torch", "torch"), 500, TrellisError),
        (TrellisError("no"), 500, TrellisError),
    ],
)
def test_an_error_comes_back_as_its_class_with_its_message(
    error: TrellisError, status: int, comes_back_as: type[TrellisError]
) -> None:
    assert status_of(error) == status
    back = from_json(status, to_json(error), url=URL)
    assert type(back) is comes_back_as
    assert str(back) == str(error)
    if isinstance(error, InvalidInput):
        assert isinstance(back, InvalidInput)
        assert (back.what, back.faults) == (error.what, error.faults)
    if isinstance(error, Refused):
        assert isinstance(back, Refused)
        assert back.code == error.code


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        *((code, 2) for code in ("clock", "expired", "aggregation", "model", "data", "region")),
        *((code, 1) for code in ("untrusted", "signature", "server", "unknown", "conflict")),
    ],
)
def test_what_a_server_refuses_for_the_tasks_own_words_is_an_input_to_mend(code: str, exit_code: int) -> None:
    back = from_json(403, to_json(Refused(code, "no")), url=URL)
    assert (type(back), back.exit_code) == (Refused, exit_code)


@pytest.mark.parametrize(
    "body", [None, [], {}, "no", {"error": "no"}, {"error": {"message": 5}}, {"detail": "x"}]
)
def test_a_foreign_body_is_said_to_be_foreign(body: object) -> None:
    error = from_json(502, body, url=URL)
    assert type(error) is TrellisError
    assert str(error) == f"{URL} answered HTTP 502 with something that is not Trellis's"


@pytest.mark.parametrize("faults", [5, "abc", {"field": "a"}, None, [1, "x", None]])
def test_faults_of_a_foreign_kind_are_left_out(faults: object) -> None:
    error = from_json(
        400, {"error": {"code": "invalid", "message": "m", "what": "w", "faults": faults}}, url=URL
    )
    assert isinstance(error, InvalidInput)
    assert error.faults == ()


@given(st.integers(400, 599), JSON_VALUES | st.fixed_dictionaries({"error": JSON_VALUES}))
def test_any_body_becomes_an_error_of_ours(status: int, body: object) -> None:
    assert isinstance(from_json(status, body, url=URL), TrellisError)
