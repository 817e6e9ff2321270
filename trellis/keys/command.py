"""`trellis keys`: makes the fleet's keys and certificates, and shows them."""

from __future__ import annotations

import datetime as dt
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from trellis.identifiers import replica_names
from trellis.keys import acl
from trellis.keys.authority import complete, held_already, issue
from trellis.keys.certificates import LEAF_DAYS, host_name
from trellis.keys.files import present
from trellis.keys.principals import BROKER, SERVER, Principal, device, gateway
from trellis.keys.register import Entry, entries
from trellis.keys.renewal import CA, renew
from trellis.topics import DEFAULT_BASE, Topics

app = typer.Typer(
    name="keys",
    help="Make and show the keys and certificates of a fleet.",
    no_args_is_help=True,
)

_Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host", metavar="HOST", help="DNS name or IP address under which others reach it; repeatable."
    ),
]
_Days = Annotated[int, typer.Option("--days", help="How long a certificate holds.")]
_Keys = Annotated[
    Path, typer.Option("--keys", metavar="DIR", help="The folder that 'trellis keys init' wrote.")
]
_Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="TOPIC",
        help=f"The topics' common beginning, {DEFAULT_BASE} at first. Kept in broker/base below the keys "
        "until it is given anew.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_DEFAULT_KEYS = Path("keys")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write them; made if need be.")],
    *,
    region: Annotated[
        list[str] | None,
        typer.Option(
            "--region",
            metavar="REGION[=HOST]",
            help="A region to make a gateway for, and where others reach that gateway; repeatable.",
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="HOST", help="Where others reach server and broker: DNS name or IP; repeatable."
        ),
    ] = None,
    days: _Days = LEAF_DAYS,
    base: _Base = None,
    as_json: _Json = False,
) -> None:
    """Make a CA, the operator's signing key, and certificates for server, broker and gateways.

    What DIR has of them stays as it is, so that an interrupted init is completed by another.

    \b
    Example:
      trellis keys init keys --region eu-1=10.1.0.2 --host 10.0.0.5 --host fl.example.org
    """
    # A gateway gets its own host names and no others: with the server's it could pose as the server.
    hosts: dict[Principal, list[str]] = {SERVER: host or [], BROKER: host or []}
    for item in region or ():
        name, _, own = item.partition("=")
        hosts.setdefault(gateway(name), []).extend([own] if own else [])
    topics = _topics(base)
    for names in hosts.values():
        for one in names:
            host_name(one)
    made = complete(folder, hosts, days)
    if not made and present(folder / BROKER.folder / acl.FILE):
        raise held_already(folder)
    acl.write(folder, topics)
    _report(
        folder,
        made,
        as_json,
        "keep ca/ and operator/signing.key to yourself; copy each other folder to its machine",
    )


@app.command("gateway")
def add_gateway(
    region: Annotated[str, typer.Argument(metavar="REGION", help="The gateway's region.")],
    *,
    keys: _Keys = _DEFAULT_KEYS,
    host: _Hosts = None,
    days: _Days = LEAF_DAYS,
    base: _Base = None,
    as_json: _Json = False,
) -> None:
    """Make the certificate of a region's gateway.

    \b
    Example:
      trellis keys gateway us-1 --host 10.0.1.5 --keys keys
    """
    _add(gateway(region), keys, host or [], days, topics=_topics(base), as_json=as_json)


@app.command("device")
def add_device(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device's name.")],
    *,
    region: Annotated[str, typer.Option("--region", metavar="REGION", help="The region it belongs to.")],
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            metavar="N",
            min=1,
            help="For load tests: of N devices, NAME-1 to NAME-N; those that have one keep it.",
        ),
    ] = None,
    keys: _Keys = _DEFAULT_KEYS,
    days: _Days = LEAF_DAYS,
    base: _Base = None,
    as_json: _Json = False,
) -> None:
    """Make the certificate of a device, or those of `trellis device --replicas`.

    \b
    Examples:
      trellis keys device cam-7 --region eu-1 --keys keys
      trellis keys device sim --region eu-1 --replicas 50 --keys keys
    """
    if replicas is None:
        _add(device(region, name), keys, [], days, topics=_topics(base), as_json=as_json)
        return
    topics = _topics(base)
    each = [device(region, one) for one in replica_names(name, replicas)]
    new = [one for one in each if not present(keys / one.folder / "tls.key")]
    made = [issue(keys, one, [], days) for one in new]
    then = f"copy {shlex.quote(str(keys / each[0].folder.parent))} to their machine, below keys/devices"
    _report(keys, made, as_json, then + _listed(keys, topics))


@app.command("renew")
def renew_certificates(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Whose, as 'trellis keys show' has it; ca is the CA. Without any: all that end within 30 "
            "days, and the CA if it ends before what it would issue.",
        ),
    ] = None,
    *,
    keys: _Keys = _DEFAULT_KEYS,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="HOST",
            help="DNS name or IP address under which others reach it, in place of those it has; repeatable.",
        ),
    ] = None,
    days: _Days = LEAF_DAYS,
    as_json: _Json = False,
) -> None:
    """Renew certificates under the same CA; private keys stay as they are.

    \b
    Examples:
      trellis keys renew --keys keys
      trellis keys renew central/server broker --host 10.0.0.9 --keys keys
    """
    renewed = renew(keys, names or (), hosts=host or (), days=days)
    if as_json:
        typer.echo(json.dumps({"keys": str(keys), "renewed": [str(entry.folder) for entry in renewed]}))
        return
    for entry in renewed:
        typer.echo(f"renewed {entry.folder}: {entry.common_name} until {entry.not_after:%Y-%m-%d}")
    if any(entry.folder == keys / CA for entry in renewed):
        typer.echo("each machine gets the CA's new ca.crt, which is in its folder, with its next renewal")
    if any(entry.folder != keys / CA for entry in renewed):
        typer.echo(
            "copy ca.crt and tls.crt of each to its machine, and restart what runs there (reload mosquitto)"
        )
    if not renewed:
        typer.echo(f"nothing in {keys} ends within 30 days: name what is to be renewed all the same")


@app.command("acl")
def write_acl(
    keys: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that 'trellis keys init' wrote.")],
    base: _Base = None,
    bridged: Annotated[
        list[str] | None,
        typer.Option(
            "--bridged",
            metavar="REGION",
            help="A region with a broker of its own: its gateway may write its devices' topics; repeatable. "
            "Kept in DIR/broker/bridged until it is given anew; delete that file for none.",
        ),
    ] = None,
    below: Annotated[
        list[str] | None,
        typer.Option(
            "--below",
            metavar="SITE=COUNTRY",
            help="A region whose gateway stands below another's (--parent): that may read what it says; "
            "repeatable. Kept in DIR/broker/below until it is given anew; delete that file for none.",
        ),
    ] = None,
) -> None:
    """Write DIR/broker/acl anew from the identities in DIR, and from who is bridged or nested.

    \b
    Examples:
      trellis keys acl keys
      trellis keys acl keys --bridged us-1 --bridged ap-1
      trellis keys acl keys --below eu-1=eu --below eu-2=eu
    """
    nested = acl.below_of(below) if below else None
    path = acl.write(keys, _topics(base), bridged=bridged or None, below=nested)
    typer.echo(f"wrote {path}: copy it to the broker, and reload that")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of all keys, or one identity's.")],
    as_json: _Json = False,
) -> None:
    """Show who has a certificate, and when it ends.

    \b
    Examples:
      trellis keys show keys
      trellis keys show keys --json
    """
    now = dt.datetime.now(dt.UTC)
    found = [(entry, (entry.not_after - now) // dt.timedelta(days=1)) for entry in entries(folder)]
    if as_json:
        typer.echo(json.dumps([_row(entry, days_left) for entry, days_left in found], indent=2))
        return
    width = max(len(entry.common_name) for entry, _ in found)
    for entry, days_left in found:
        left = f"{days_left} days left" if days_left >= 0 else "EXPIRED"
        typer.echo(
            f"{entry.common_name:<{width}}  until {entry.not_after:%Y-%m-%d}  {left:>14}  {entry.folder}"
        )


def _topics(base: str | None) -> Topics | None:
    return None if base is None else Topics(base)


def _row(entry: Entry, days_left: int) -> dict[str, str | int]:
    return {
        "name": entry.common_name,
        "folder": str(entry.folder),
        "not_after": entry.not_after.isoformat(),
        "days_left": days_left,
    }


def _add(
    principal: Principal, keys: Path, hosts: list[str], days: int, *, topics: Topics | None, as_json: bool
) -> None:
    made = issue(keys, principal, hosts, days)
    then = f"copy {shlex.quote(str(made))} to the {principal.role}"
    _report(keys, [made], as_json, then + _listed(keys, topics))


def _listed(keys: Path, topics: Topics | None) -> str:
    """Return what is left to do once the access list, if there is one, knows who was added."""
    if not present(keys / BROKER.folder):
        return ""
    return f", and {shlex.quote(str(acl.write(keys, topics)))} to the broker, and reload that"


def _report(root: Path, made: list[Path], as_json: bool, then: str) -> None:
    if as_json:
        typer.echo(json.dumps({"keys": str(root), "made": [str(path) for path in made]}))
        return
    for path in made:
        typer.echo(f"made {path}")
    typer.echo(then)
