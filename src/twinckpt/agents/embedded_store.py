"""The embedded control store: nothing to install. The root is who listens at the endpoint.

The kernel of the endpoint's machine is the arbiter, so only that machine can start another root,
and a root leaves nothing behind.
"""

import errno
import socket
import threading

from twinckpt.agents.control_store import RootEntry, listen_at, split_address
from twinckpt.core.adoption import GenerationRecord
from twinckpt.errors import ConfigurationError

DEFAULT_PORT = 29400


class EmbeddedLeadership:
    """A hold on the port, which lasts as long as the process."""

    record: GenerationRecord | None = None

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener

    def leave(self, record: GenerationRecord | None) -> None:
        """Do nothing: nobody would find the record."""

    def hold(self) -> None:
        """Block for ever: nobody else can have the port."""
        threading.Event().wait()


class EmbeddedStore:
    """The store at `host:port`."""

    elects_successors = False
    pause_s = 0.2

    def __init__(self, host: str, port: int) -> None:
        self.entry = RootEntry(host, port)

    @classmethod
    def at(cls, endpoint: str) -> "EmbeddedStore":
        """Return the store at `HOST[:PORT]`; raises ConfigurationError."""
        try:
            return cls(*split_address(endpoint or "localhost", DEFAULT_PORT))
        except ValueError as error:
            raise ConfigurationError(f"--rdzv-endpoint: {error}, nor etcd://HOST:PORT") from error

    def root(self) -> RootEntry | None:
        """Return the endpoint: the root is there, or will be."""
        return self.entry

    def wait_for_change(self, timeout_s: float) -> None:
        """Wait for `timeout_s`: the root's address never changes."""
        threading.Event().wait(timeout_s)

    def campaign(self, host: str) -> EmbeddedLeadership | None:
        """Take the port if it is free; raises OSError if this machine cannot have it."""
        try:
            return EmbeddedLeadership(listen_at(self.entry.host, self.entry.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise
