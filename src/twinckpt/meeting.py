"""The address where the ranks of a generation meet: a warm parent listens before it offers it.

A client of torch's store that is refused tries again after half a second, and of four ranks forked
at once, some are refused about half of the time. So the parent listens from the moment it offers
the address, and its child, if it becomes rank 0, serves the connections that have queued up.
"""

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_BACKLOG = 4096


class MeetingPoint:
    """A listening address, at which a store is served once it is needed."""

    def __init__(self, host: str) -> None:
        # All addresses, as torch's own store does: `host` is how others see this machine.
        is_dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if is_dual else socket.AF_INET
        self._socket = socket.create_server(
            ("", 0), family=family, backlog=_BACKLOG, dualstack_ipv6=is_dual
        )
        self._host, self._port = host, int(self._socket.getsockname()[1])

    @property
    def endpoint(self) -> str:
        """Return the address to tell other machines, HOST:PORT."""
        return f"{self._host}:{self._port}"

    def serve(self) -> "TCPStore | None":
        """Serve the store if the ranks meet at this process; return it, or None if elsewhere.

        Called in a fresh child. The store serves as long as the returned object is referred to,
        and `init_process_group` finds it.
        """
        environment = os.environ
        if f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}" != self.endpoint:
            self.close()
            return None
        from torch.distributed import TCPStore  # not every parent has it imported

        return TCPStore(
            self._host,
            self._port,
            int(environment["WORLD_SIZE"]),
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=self._socket.detach(),
        )

    def close(self) -> None:
        """Stop listening in this process."""
        self._socket.close()
