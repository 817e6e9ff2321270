"""A client of the server's and the gateways' HTTP APIs: our errors come back as the classes they were.

ServiceClient.get / post / download
├── Unavailable    nobody answered in time, or the connection broke
├── InvalidInput   400: the input must be mended
├── Refused        401, 403, 404, 409: a rule said no
└── TrellisError   anything else
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from trellis.config import DEVICE_SERVER
from trellis.errors import ConfigError, Fault, TrellisError, Unavailable
from trellis.files import output_file, replacing
from trellis.http.errors import from_json
from trellis.loopback import is_loopback
from trellis.tls import TlsFiles, client_context

_TIMEOUT = httpx.Timeout(10.0, connect=5.0)


class ServiceClient:
    """Speaks to one service from `__aenter__` to `__aexit__`.

    Args:
        url: `https://host:port`, or `http://` on loopback.
        tls: CA and client certificate, for `https://`.
        start_hint: The command that starts the service, for the error when nobody answers.
    """

    def __init__(self, url: str, *, tls: TlsFiles | None, start_hint: str = "") -> None:
        try:
            parts = urlsplit(url)
            readable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number up to 65535, or half an IPv6 address
            readable = False
        if not readable or parts.hostname is None:
            remedy = "" if "://" in url else f"a device's HOST:PORT may stand in {DEVICE_SERVER}"
            fault = Fault("", "must be http://HOST:PORT or https://HOST:PORT", remedy)
            raise ConfigError(f"URL {url!r}", [fault])
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ConfigError(f"URL {url!r}", "leaves this machine unencrypted: use https:// and --keys")
        if parts.scheme == "https" and tls is None:
            raise ConfigError(f"URL {url!r}", "needs a certificate of our CA: give --keys")
        self.url = url.rstrip("/")
        self._hint = f"; start it with `{start_hint}`" if start_hint else ""
        verify: Any = client_context(tls) if tls is not None and parts.scheme == "https" else False
        # trust_env=False: a proxy variable must not divert what goes to our own services.
        self._client = httpx.AsyncClient(base_url=self.url, verify=verify, timeout=_TIMEOUT, trust_env=False)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._client.__aexit__(exc_type, exc, tb)

    async def get(self, path: str, **params: str | int | float) -> dict[str, Any]:
        """Return the JSON object at `path`."""
        return await self._call("GET", path, params=params)

    async def post(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        """Post `body` and return the JSON object that answers it."""
        return await self._call("POST", path, content=body, headers={"content-type": "application/json"})

    async def download(self, path: str, to: Path) -> int:
        """Write what stands at `path` into the file `to`, whole or not at all; return its bytes.

        Raises:
            DiskFailed: The disk does not take it.
        """
        try:
            async with self._client.stream("GET", path, timeout=httpx.Timeout(60.0, connect=5.0)) as response:
                if response.is_error:
                    await response.aread()
                    raise self._error(response)
                with output_file(to), replacing(to) as file:
                    return sum([file.write(chunk) async for chunk in response.aiter_bytes()])
        except httpx.TransportError as error:
            raise self._unanswered(error) from None

    async def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = await self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._unanswered(error) from None
        if response.is_error:
            raise self._error(response)
        if not response.content:
            return {}
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise TrellisError(f"{self.url}{path} answered with something that is no JSON object")
        return body

    def _error(self, response: httpx.Response) -> TrellisError:
        try:
            body = response.json()
        except ValueError:
            body = None
        return from_json(response.status_code, body, url=str(response.url))

    def _unanswered(self, error: httpx.TransportError) -> Unavailable:
        why = str(error) or type(error).__name__
        return Unavailable(f"{self.url} does not answer: {why}{self._hint}")
