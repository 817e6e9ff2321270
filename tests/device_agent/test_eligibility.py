from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from device_agent.eligibility import (
    Believed,
    Means,
    Seen,
    believe,
    reason_of,
    require_data,
    require_means,
    require_server,
    server_of,
)
from models.datasets import Dataset
from trellis.descriptor import Model, TaskDescriptor
from trellis.envelope import Envelope, Keyring, sign
from trellis.errors import DataError, DescriptorError, MissingExtra, Refused
from trellis.signing_key import SigningKey

MakeTask = Callable[..., TaskDescriptor]
ISSUED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EXPIRES = ISSUED + timedelta(days=7)
MEANS = Means(
    servers=("127.0.0.1:8000",), tls=False, models=("lenet5", "softmax"), backend="torch", backends=("torch",)
)


@pytest.fixture
def examine(operator: SigningKey) -> Callable[..., Believed]:
    def examine(
        task: TaskDescriptor,
        *,
        now: datetime = ISSUED + timedelta(hours=1),
        seen: Seen | None = None,
        region: str = "eu-1",
        topic_task: str = "blobs",
        envelope: Envelope | None = None,
    ) -> Believed:
        envelope = envelope or sign(task.to_json(), operator)
        keyring = Keyring([operator.public])
        return believe(envelope, task=topic_task, region=region, keyring=keyring, seen=seen, now=now)

    return examine


@pytest.fixture
def task(make_task: MakeTask) -> TaskDescriptor:
    return make_task(revision=3, issued_at=ISSUED.isoformat(), expires_at=EXPIRES.isoformat())


def digest(task: TaskDescriptor) -> str:
    work = json.loads(task.to_json())
    del work["issued_at"], work["expires_at"]
    return hashlib.sha256(json.dumps(work, separators=(",", ":")).encode()).hexdigest()


def test_a_signed_task_for_this_region_now_is_believed(task, examine, operator):
    believed = examine(task)
    assert believed.descriptor == task
    assert believed.keyid == operator.keyid
    assert believed.digest == digest(task)


def test_a_strangers_task_is_untrusted(task, examine):
    stranger = SigningKey.generate()
    with pytest.raises(Refused, match=f"signed by key {stranger.keyid}, pinned is") as refused:
        examine(task, envelope=sign(task.to_json(), stranger))
    assert refused.value.code == "untrusted"


def test_an_altered_task_has_a_wrong_signature(task, examine, operator):
    envelope = sign(task.to_json(), operator)
    altered = envelope.model_copy(update={"payload": envelope.payload.replace('"eu-1"', '"us-1"')})
    with pytest.raises(Refused, match="does not fit the payload") as refused:
        examine(task, envelope=altered)
    assert refused.value.code == "signature"


def test_a_signed_text_that_is_no_descriptor_names_its_faults(task, examine, operator):
    with pytest.raises(DescriptorError, match="rounds") as error:
        examine(task, envelope=sign(task.to_json().replace('"rounds":3', '"rounds":0'), operator))
    assert reason_of(error.value).code == "descriptor"


def test_a_task_on_anothers_topic_is_refused(task, examine):
    with pytest.raises(
        Refused, match="topic names task 'other', the signed descriptor in it is of task 'blobs'"
    ) as e:
        examine(task, topic_task="other")
    assert e.value.code == "conflict"


def test_a_task_for_other_regions_is_refused(task, examine):
    with pytest.raises(Refused, match="task 'blobs' is for eu-1; this device is in region 'us-1'") as refused:
        examine(task, region="us-1")
    assert refused.value.code == "region"


def test_a_clock_before_the_issue_is_refused_and_the_exact_second_is_not(task, examine):
    examine(task, now=ISSUED)
    with pytest.raises(
        Refused, match=r"clock says 2026-03-01T11:59:59\+00:00, before the task was issued"
    ) as e:
        examine(task, now=ISSUED - timedelta(seconds=1))
    assert e.value.code == "clock"


def test_an_expired_task_is_refused_from_its_last_second_on(task, examine):
    examine(task, now=EXPIRES - timedelta(seconds=1))
    with pytest.raises(Refused, match=r"expired 2026-03-08T12:00:00\+00:00.*post a new revision") as refused:
        examine(task, now=EXPIRES)
    assert refused.value.code == "expired"


def test_a_cancellation_is_obeyed_whatever_the_clock_says(task, examine):
    for now in (ISSUED - timedelta(days=9), EXPIRES + timedelta(days=9)):
        assert examine(task.canceled(), now=now).descriptor.desired == "canceled"


def test_a_replayed_lower_revision_is_refused(task, examine):
    with pytest.raises(Refused, match="revision 3 of task 'blobs' came, this device has seen 4") as refused:
        examine(task, seen=Seen(4, "0" * 64))
    assert refused.value.code == "revision"


def test_a_replayed_run_after_its_cancellation_is_refused(task, examine):
    with pytest.raises(Refused) as refused:
        examine(task, seen=Seen(task.canceled().revision, digest(task.canceled())))
    assert refused.value.code == "revision"


def test_the_same_revision_is_believed_again_but_not_with_another_text(task, examine):
    assert examine(task, seen=Seen(3, digest(task))).descriptor == task
    other = task.model_copy(update={"model": Model(name="softmax2")})
    with pytest.raises(Refused, match="a second, different descriptor"):
        examine(other, seen=Seen(3, digest(task)))
    with pytest.raises(Refused, match=r"different descriptor calls itself revision 3.*give it revision 4"):
        examine(task, seen=Seen(3, "0" * 64))


def test_the_same_work_signed_anew_is_believed_under_its_revision(task, examine):
    later = ISSUED + timedelta(minutes=5)
    anew = task.model_copy(update={"issued_at": later, "expires_at": later + timedelta(days=9)})
    believed = examine(anew, seen=Seen(3, digest(task)))
    assert (believed.descriptor, believed.digest) == (anew, digest(task))


def test_a_journal_that_holds_the_digest_of_the_signed_text_is_understood(task, examine):
    text = hashlib.sha256(task.to_json().encode()).hexdigest()
    assert examine(task, seen=Seen(3, text)).digest == digest(task)


def test_a_server_off_the_list_is_refused(make_task):
    task = make_task(server={"address": "10.9.9.9:8000", "tls": False})
    with pytest.raises(
        Refused, match=r"names server 10.9.9.9:8000, this device's list is 127.0.0.1:8000"
    ) as e:
        require_server(Believed(task, "d", "k"), "eu-1", MEANS)
    assert e.value.code == "server"


@pytest.mark.parametrize(
    ("aggregation", "front", "due"),
    [
        (
            {"tier": "central"},
            "10.1.0.2:8000",
            "127.0.0.1:8000",
        ),  # nobody averages in a region: no hint counts
        ({"tier": "regional"}, "10.1.0.2:8000", "10.1.0.2:8000"),
        # A region that relays may stand below one that averages.
        ({"tier": "regional", "regions": {"eu-1": {"tier": "central"}}}, "10.1.0.2:8000", "10.1.0.2:8000"),
        ({"tier": "regional", "regions": {"eu-1": {"tier": "central"}}}, None, "127.0.0.1:8000"),
    ],
)
def test_a_hint_at_a_front_is_followed_where_a_region_averages(make_task, aggregation, front, due):
    task = make_task(regions=["eu-1", "us-1"], aggregation=aggregation)
    assert server_of(Believed(task, "d", "k", front), "eu-1") == due


def test_a_hint_at_a_front_off_the_list_is_refused(make_task):
    task = Believed(make_task(aggregation={"tier": "regional"}), "d", "k", "10.9.9.9:8000")
    with pytest.raises(Refused, match=r"comes with the hint at front 10.9.9.9:8000, .* --server for it") as e:
        require_server(task, "eu-1", MEANS)
    assert e.value.code == "server"


def test_a_region_that_averages_must_say_where(make_task):
    task = Believed(make_task(aggregation={"tier": "regional"}), "d", "k")
    with pytest.raises(
        Refused, match=r"region 'eu-1', and its gateway does not say where: .*--front-port"
    ) as e:
        require_server(task, "eu-1", MEANS)
    assert e.value.code == "server"


def test_a_task_cannot_switch_tls_off(make_task):
    means = Means(("127.0.0.1:8000",), tls=True, models=("softmax",), backend="torch", backends=("torch",))
    with pytest.raises(Refused, match=r"says server.tls: false, this device speaks TLS only") as refused:
        require_means(make_task(), means)
    assert refused.value.code == "server"


def test_an_unknown_model_names_the_known_and_the_nearest(make_task):
    with pytest.raises(
        Refused, match=r"model 'lenet' is not known here, known are lenet5, softmax; .*'lenet5'"
    ) as e:
        require_means(make_task(model={"name": "lenet"}), MEANS)
    assert e.value.code == "model"


def test_a_missing_backend_names_the_extra_to_install(make_task):
    means = Means(MEANS.servers, tls=False, models=MEANS.models, backend="torch", backends=())
    with pytest.raises(Refused, match=r"installed: none; pip install 'trellis-fl\[torch\]'") as refused:
        require_means(make_task(), means)
    assert refused.value.code == "extra"
    assert reason_of(MissingExtra("torch", "torch")).code == "extra"


def test_data_that_do_not_fit_are_refused_with_every_fault(make_task, blobs):
    task = make_task(
        data={"name": "cats", "shape": [2, 2], "classes": 2, "min_samples": 65, "instructions": "ask Kim"}
    )
    with pytest.raises(DataError) as error:
        require_data(task, blobs)
    assert [fault.field for fault in error.value.faults] == [
        "data.name",
        "data.shape",
        "data.classes",
        "data.min_samples",
    ]
    assert "holds 64 samples, the task wants at least 65" in str(error.value)
    assert "ask Kim" in str(error.value)
    assert reason_of(error.value).code == "data"


def test_data_with_nan_are_refused(make_task, blobs):
    x = blobs.x.copy()
    x[5, 1] = np.nan
    with pytest.raises(DataError, match="1 samples hold NaN or infinity, the first is number 5"):
        require_data(make_task(), Dataset("blobs", x, blobs.y, 3))


def test_data_that_fit_pass(make_task, blobs):
    require_data(make_task(), blobs)
    require_means(make_task(), MEANS)
