"""The control store in etcd: any machine's root agent can be elected.

`/twinckpt/RUN_ID/root` names the root that workers follow, `/twinckpt/RUN_ID/generation` is the
record that it leaves its successor. Both are written under the root's lease, and only by a root
that finds the first key as it has last seen it (compare-and-swap): one that was replaced can
write nothing more.

A candidate replaces a root that refuses connections (its kernel says that nobody listens), or
that has not renewed its lease for a second by etcd's own clock. A root that etcd cannot hear
while nobody replaces it goes on, and writes its key anew when etcd is back.
"""

import logging
import socket
import threading
import time
import uuid
from dataclasses import replace

import msgspec

from twinckpt.agents.control_store import RootEntry, listen_at, split_address
from twinckpt.agents.etcd_client import DEFAULT_PORT, Access, EtcdClient, Value
from twinckpt.core.adoption import GenerationRecord
from twinckpt.errors import AgentUnavailableError, ConfigurationError, TwinckptError

logger = logging.getLogger(__name__)

LEASE_S, RENEW_S, STALE_S = 10, 0.3, 2  # STALE_S in whole seconds, rounded up
_PROBE_TIMEOUT_S = 0.5
_PAUSE_S, _CAMPAIGNS_PER_S = 0.2, 100.0


class EtcdStore:
    """The keys of one job."""

    elects_successors = True

    def __init__(self, client: EtcdClient, run_id: str) -> None:
        self._client = client
        self._root_key = f"/twinckpt/{run_id}/root"
        self._record_key = f"/twinckpt/{run_id}/generation"
        self._revision = 0
        self._seen: RootEntry | None = None
        self._seen_at_s = 0.0

    @property
    def pause_s(self) -> float:
        """The pause between campaigns: all candidates together make at most a hundred a second."""
        num_candidates = self._seen.num_machines if self._seen else 1
        return max(_PAUSE_S, num_candidates / _CAMPAIGNS_PER_S)

    @classmethod
    def at(cls, members: str, run_id: str) -> "EtcdStore":
        """Return the store at `HOST:PORT,…[/RUN_ID]`; raises ConfigurationError."""
        addresses, _, named = members.partition("/")
        try:
            found = [split_address(member, DEFAULT_PORT) for member in addresses.split(",")]
        except ValueError as error:
            raise ConfigurationError(f"etcd://{members}: {error}") from error
        return cls(EtcdClient(found, Access.from_environment()), named or run_id or "none")

    def root(self) -> RootEntry | None:
        """Return who is elected."""
        value, self._revision = self._client.get(self._root_key)
        return None if value is None else _entry(value)

    def wait_for_change(self, timeout_s: float) -> None:
        """Watch the root's key."""
        self._client.wait_for_change(self._root_key, self._revision, timeout_s)

    def campaign(self, host: str) -> "EtcdLeadership | None":
        """Replace a root that is gone; None if it is not, or another candidate was faster."""
        value, _ = self._client.get(self._root_key)
        if not (self._is_gone(value) if value else self._is_free()):
            return None
        listener = listen_at(host, 0)
        entry = RootEntry(host, listener.getsockname()[1], uuid.uuid4().hex)
        leadership = EtcdLeadership(self._client, self._root_key, self._record_key, entry, listener)
        if leadership.take(value.revision if value else 0):
            return leadership
        listener.close()
        return None

    def _is_gone(self, value: Value) -> bool:
        self._seen, self._seen_at_s = _entry(value), time.monotonic()
        return _refuses(self._seen) or self._client.age_s(value.lease) >= STALE_S

    def _is_free(self) -> bool:
        """Return whether no root lives, given that none has a key: etcd may have lost its data."""
        is_recent = time.monotonic() - self._seen_at_s < STALE_S
        return self._seen is None or not is_recent or _refuses(self._seen)


def _refuses(entry: RootEntry) -> bool:
    """Return whether a root's machine says that nobody listens; no answer says nothing."""
    try:
        socket.create_connection((entry.host, entry.port), timeout=_PROBE_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


class EtcdLeadership:
    """The elected root's hold on its keys."""

    def __init__(
        self,
        client: EtcdClient,
        root_key: str,
        record_key: str,
        entry: RootEntry,
        listener: socket.socket,
    ) -> None:
        self.listener = listener
        self.record: GenerationRecord | None = None
        self._client = client
        self._root_key, self._record_key = root_key, record_key
        self._entry = entry
        self._lease = 0
        self._to_write: list[GenerationRecord | None] = []
        self._wake = threading.Event()

    def take(self, revision: int) -> bool:
        """Write the root's key if it is of this revision (0: absent), then read the record."""
        self._lease = self._client.grant(LEASE_S)
        try:
            is_elected = bool(self._write(revision))
        except AgentUnavailableError:
            is_elected = self._holds(self._client.get(self._root_key)[0])
        if not is_elected:
            self._client.revoke(self._lease)
            return False
        left, _ = self._client.get(self._record_key)
        self.record = None if left is None else _decode(left)
        self.leave(self.record)  # under the new lease
        return True

    def leave(self, record: GenerationRecord | None) -> None:
        """Have the record written by the thread that holds the keys."""
        self._to_write = [record]
        self._wake.set()

    def hold(self) -> None:
        """Renew the lease and write what is left, until another root is found in the key."""
        is_reachable = True
        while True:
            try:
                if not self._renew():
                    return
                is_reachable = True
            except TwinckptError as error:  # it does not answer, or refuses
                if is_reachable:
                    logger.warning("%s; this root goes on, and so does training", error)
                is_reachable = False
            if self._wake.wait(RENEW_S):
                self._wake.clear()

    def _renew(self) -> bool:
        """Renew the lease and write what is left; return False once somebody else is the root."""
        value, _ = self._client.get(self._root_key)
        if value is not None and not self._holds(value):
            return False
        if value is None or not self._client.keep_alive(self._lease):
            # etcd was away for longer than the lease, or begins anew, and nobody was faster.
            self._lease = self._client.grant(LEASE_S)
            self._to_write = self._to_write or [self.record]
            self._write(value.revision if value else 0)
        elif self._to_write:
            self._write(value.revision)
        return True

    def _write(self, revision: int) -> int:
        to_write, entry = self._to_write, self._entry
        record = to_write[0] if to_write else self.record
        puts = {}
        if record is not None:
            entry = replace(entry, num_machines=len(record.places))
        if record is not None and to_write:
            puts[self._record_key] = msgspec.json.encode(record)
        puts[self._root_key] = msgspec.json.encode(entry)
        deletes = [self._record_key] if to_write and record is None else []
        written = self._client.swap(self._root_key, revision, puts, self._lease, deletes)
        if written and to_write:
            self.record = record
            if self._to_write is to_write:
                self._to_write = []
        return written

    def _holds(self, value: Value | None) -> bool:
        return value is not None and _entry(value).identity == self._entry.identity


def _entry(value: Value) -> RootEntry:
    try:
        return msgspec.json.decode(value.data, type=RootEntry)
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"etcd: the job's root key holds something else: {error}"
        ) from error


def _decode(value: Value) -> GenerationRecord | None:
    try:
        return msgspec.json.decode(value.data, type=GenerationRecord)
    except msgspec.DecodeError as error:
        logger.warning("the former root's record cannot be read: %s", error)
        return None
