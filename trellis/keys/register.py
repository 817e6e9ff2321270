"""The certificates that lie in a folder of keys."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from trellis.errors import ConfigError
from trellis.keys.files import present, unreadable
from trellis.keys.identity import common_name_of


@dataclass(frozen=True)
class Entry:
    """One certificate.

    Attributes:
        common_name: Whom it names.
        folder: Where it lies.
        not_after: When it ends, in UTC.
    """

    common_name: str
    folder: Path
    not_after: dt.datetime


def entries(keys: Path) -> list[Entry]:
    """Return the certificates below `keys`, the CA's included, by path.

    Raises:
        ConfigError: There is none, or one cannot be read.
    """
    found = []
    for path in _certificates(keys):
        certificate = certificate_in(path)
        found.append(Entry(common_name_of(certificate), path.parent, certificate.not_valid_after_utc))
    if not found:
        raise ConfigError(
            f"folder {keys}", f"holds no certificates: make them with 'trellis keys init {keys}'"
        )
    return found


def certificate_in(path: Path) -> x509.Certificate:
    """Return the certificate in a file.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise ConfigError(f"file {path}", f"cannot be read as a certificate: {error}") from error


def _told(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # it was moved away meanwhile, or never there
        raise unreadable(Path(error.filename), error) from error


def _certificates(keys: Path) -> list[Path]:
    paths = []
    for folder, inner, names in os.walk(keys, onerror=_told):
        # What begins with a dot is being written, or its writer died: it may vanish under our eyes.
        inner[:] = [name for name in inner if not name.startswith(".")]
        paths += [Path(folder, name) for name in names if name == "tls.crt"]
    ca = keys / "ca" / "ca.crt"
    return sorted([*paths, *([ca] if present(ca) else [])])
