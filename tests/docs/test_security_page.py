"""docs/security.md against the keys, the access list, and the reasons that machines give."""

from __future__ import annotations

import re

from pages import ROOT, codes, read, rows, section, table

from trellis.keys import acl
from trellis.keys.certificates import CA_DAYS, LEAF_DAYS
from trellis.keys.principals import BROKER, OPERATOR, SERVER, device, gateway
from trellis.topics import Topics

PAGE = read("docs/security.md")
RULES = (
    "device_agent/eligibility.py",
    "regional_gateway/relay.py",
    "regional_gateway/place.py",
    "central_server/admission.py",
    "trellis/admission_rules.py",
    "trellis/envelope.py",
)
HOLDERS = (OPERATOR, SERVER, BROKER, gateway("eu-1"), device("eu-1", "cam-7"))


def test_the_table_of_folders_is_what_keys_writes() -> None:
    listed = [(codes(row[0])[0], codes(row[1])) for row in table(PAGE, "folders")]
    assert listed == [("keys/ca", []), *((f"keys/{one.folder}", [one.common_name]) for one in HOLDERS)]


def test_the_table_of_rights_is_the_access_list() -> None:
    holders = (SERVER, gateway("eu-1"), device("eu-1", "cam-7"), OPERATOR)
    written = acl.render(holders, Topics())
    for holder, (_, reads, writes) in zip(holders, table(PAGE, "acl"), strict=True):
        (part,) = re.findall(rf"^user {holder.common_name}\n((?:topic .*\n)+)", written, re.MULTILINE)
        rights = re.findall(r"^topic (\w+) trellis/v1/(.*)$", part, re.MULTILINE)
        assert codes(writes) == [topic for access, topic in rights if "write" in access]
        # What is written may be read, too; the table says it once.
        due = [topic for access, topic in rights if access == "read"]
        assert [topic for topic in codes(reads) if topic not in codes(writes)] == [
            topic for topic in due if topic not in codes(writes)
        ]


def test_a_bridged_region_is_as_the_page_says() -> None:
    assert "topic readwrite trellis/v1/us-1/devices/#" in acl.render(
        [gateway("us-1")], Topics(), bridged=["us-1"]
    )
    assert "`us-1/devices/#`" in PAGE


def test_regions_below_regions_are_as_the_page_says() -> None:
    nested = table(PAGE, "nested")
    for (_, reads), holder in zip(nested, (gateway("eu"), gateway("eu-1")), strict=True):
        flat, below = (acl.render([holder], Topics(), below=tree) for tree in ({}, {"eu-1": "eu"}))
        gained = [line for line in below.splitlines() if line not in flat.splitlines()]
        assert gained == [f"topic read trellis/v1/{topic}" for topic in codes(reads)]


def test_every_code_of_a_refusal_is_one_that_the_code_has() -> None:
    source = "".join((ROOT / path).read_text(encoding="utf-8") for path in RULES)
    named = {code for row in rows(section(PAGE, "Rogues")) for code in codes(row[1])}
    assert {"untrusted", "signature", "revision", "expired", "server", "clock", "envelope"} <= named
    assert [code for code in sorted(named) if f'"{code}"' not in source] == []


def test_the_lives_of_certificates_are_the_codes() -> None:
    assert f"Certificates hold {LEAF_DAYS} days" in PAGE
    assert CA_DAYS == 10 * 365
    assert "the CA ten years" in PAGE
