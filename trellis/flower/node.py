"""This device as a Flower node of one server: its key, its ID, its connection and its heartbeats."""

from __future__ import annotations

import contextvars
import json
import logging
import ssl
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, RegisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient

from trellis.errors import Refused, Unavailable
from trellis.files import write_atomically
from trellis.flower.device_headers import DeviceHeaders
from trellis.flower.link_faults import told
from trellis.flower.node_key import load_node_key
from trellis.tls import TlsFiles, client_context

logger = logging.getLogger(__name__)

_BEAT_SHARE = 0.75
"""A heartbeat is sent after this share of its interval; Flower forgives two intervals."""


_REQUEST_S = 30.0
"""How long a server may take to go on with a request; as Flower's own."""


class FlowerNode:
    """A node from `resume` or `activate` to `close`; for one thread, while heartbeats run in another.

    Args:
        address: `host:port` of the server's front.
        folder: Where its key (0600) and its ID live.
        tls: CA and client certificate; None speaks plain HTTP.
        heartbeat_s: Heartbeat interval told to the SuperLink.
    """

    def __init__(self, address: str, folder: Path, tls: TlsFiles | None, heartbeat_s: float) -> None:
        self.address = address
        self._folder = folder
        self._tls = tls
        self._heartbeat_s = heartbeat_s
        self._client: FleetHttpClient | None = None
        self._node: Node | None = None
        self._ended = threading.Event()
        self._beats: threading.Thread | None = None

    @property
    def client(self) -> FleetHttpClient:
        """The connection."""
        if self._client is None:
            raise RuntimeError("FlowerLink is not connected")
        return self._client

    @property
    def proto(self) -> Node:
        """The node as Flower's requests name it."""
        if self._node is None:
            raise RuntimeError("FlowerLink is not connected")
        return self._node

    @property
    def node_id(self) -> int:
        """Its ID at this server."""
        return int(self.proto.node_id)

    def told(self, *, connecting: bool = False, replying: bool = False) -> AbstractContextManager[None]:
        """Turn what is raised inside into one of our errors; see `trellis.flower.link_faults`."""
        return told(self.address, self._folder, connecting=connecting, replying=replying)

    def resume(self) -> int | None:
        """Connect, and return the remembered node ID if the server knows it: one heartbeat, at once.

        None where it may have forgotten the node; what `activate` finds then is what counts.
        """
        client = self._open(self._key())
        node_id = self._remembered()
        if node_id is None:
            return None
        try:
            response = client.SendNodeHeartbeat(self._heartbeat(Node(node_id=node_id)))
        except httpx.HTTPStatusError as error:
            # All that a SuperLink says to a node it does not know, and to one that it does where a clock is
            # wrong. Any other answer says nothing of the node.
            if error.response.status_code != httpx.codes.UNAUTHORIZED:
                raise
            return None
        return node_id if response.success else None

    def activate(self) -> int:
        """Register, if need be, and return the ID of the node that is active from now on.

        Raises:
            Unavailable: The node that was remembered is active: its next heartbeat may be taken.
        """
        remembered = self._remembered()
        node_id = self._try_activate(self.client, self._key())
        if node_id is None and self._remembered() is not None:
            raise Unavailable(f"{self.address} refused a heartbeat of this device's node, and has it still")
        if node_id is None:
            # Active still, but under an ID that a crash kept us from noting: come back as a new node. Who a
            # node is the query's nonce proves, not its key.
            logger.warning(
                "link: %s holds this device's node active under an unknown ID; new key", self.address
            )
            self._key_file.unlink()
            key = self._key()
            node_id = self._try_activate(self._open(key), key)
        if node_id is None:
            raise Unavailable(f"{self.address} does not activate this node")
        if remembered not in {None, node_id}:
            logger.info("link: node %d is not known any more: node %d takes its place", remembered, node_id)
        write_atomically(self._id_file, json.dumps({"node_id": node_id}).encode())
        return node_id

    def live_as(self, node_id: int) -> None:
        """Be the node of that ID from now on, and keep it alive."""
        self._node = Node(node_id=node_id)
        if self._beats is None:
            # In this context: what it logs is its caller's.
            beat = contextvars.copy_context().run
            self._beats = threading.Thread(
                target=beat, args=(self._beat,), name="flower-heartbeat", daemon=True
            )
            self._beats.start()

    def close(self, *, deactivate: bool) -> bool:
        """Close the connection; return whether the node was to be signed off before.

        Signed off, or given up, it gets and answers no message any more.
        """
        self._ended.set()
        if self._client is None:
            return False
        node = self._node if deactivate else None
        if node is not None:
            try:
                with self.told():
                    self._client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
            except (Unavailable, Refused) as error:
                # The node lapses by itself with its heartbeat: nothing is lost.
                logger.info("link: could not sign off: %s", error)
            else:
                self._id_file.unlink(missing_ok=True)
        self._client.close()
        self._client = None
        return node is not None

    def _remembered(self) -> int | None:
        try:
            return int(json.loads(self._id_file.read_text())["node_id"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logger.error("link: %s is damaged; registering anew", self._id_file)
            self._id_file.unlink()
            return None

    @property
    def _id_file(self) -> Path:
        return self._folder / "node-id.json"

    @property
    def _key_file(self) -> Path:
        return self._folder / "node.pem"

    def _key(self) -> ec.EllipticCurvePrivateKey:
        return load_node_key(self._key_file)

    def _open(self, key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
        if self._client is not None:
            self._client.close()
        scheme = "http" if self._tls is None else "https"
        verify = False if self._tls is None else client_context(self._tls)
        self._client = _StraightClient(f"{scheme}://{self.address}", DeviceHeaders(key), verify)
        return self._client

    def _try_activate(self, client: FleetHttpClient, key: ec.EllipticCurvePrivateKey) -> int | None:
        public_key = public_key_to_bytes(key.public_key())
        try:
            client.RegisterNode(RegisterNodeFleetRequest(public_key=public_key))
        except httpx.HTTPStatusError as error:
            # "Public key already in use" is our own registration of an earlier start.
            if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
                raise
        else:
            # It had no node of this key: the ID is another's, and must not come back after a crash.
            self._id_file.unlink(missing_ok=True)
        request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=self._heartbeat_s)
        try:
            return int(client.ActivateNode(request).node_id)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
                raise
            return None

    def _heartbeat(self, node: Node) -> SendNodeHeartbeatRequest:
        return SendNodeHeartbeatRequest(node=node, heartbeat_interval=self._heartbeat_s)

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s * _BEAT_SHARE):
            client, node = self._client, self._node
            if client is None or node is None:
                continue
            try:
                client.SendNodeHeartbeat(self._heartbeat(node))
            except Exception as error:  # noqa: BLE001 - whatever it is, the next beat must come
                # Two intervals are forgiven, and a pull that fails makes its caller connect again.
                logger.warning("link: heartbeat to %s failed: %s", self.address, error)


class _StraightClient(FleetHttpClient):
    """Flower's client, whose requests go to the server that it is given, and nowhere else.

    Its own constructor makes one that obeys the machine's proxy variables, even for loopback, and follows
    redirects.
    """

    def __init__(self, url: str, headers: DeviceHeaders, verify: ssl.SSLContext | bool) -> None:
        self._base_url = url
        self._interceptors = (headers,)
        self._retry_invoker = None
        self._client = httpx.Client(verify=verify, timeout=_REQUEST_S, trust_env=False)
