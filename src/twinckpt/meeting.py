"""Where the ranks of a generation meet: a warm parent listens there before anybody is told.

torch's store client that is refused tries again after half a second, and four ranks that are
forked at once are refused as often as not. So the parent listens when it offers the address, and
its child serves, as soon as it is rank 0, what has queued up meanwhile.
"""

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_BACKLOG = 4096


class MeetingPoint:
    """An address that is listened at, and a store that is served there once it is needed."""

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
        """The address that others are told, HOST:PORT."""
        return f"{self._host}:{self._port}"

    def serve(self) -> "TCPStore | None":
        """Serve the store if this process is the one that the others are going to meet.

        Called in a fresh child. It serves for as long as what is returned is referred to, and
        `init_process_group` finds it. None: they meet elsewhere.
        """
        environment = os.environ
        if f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}" != self.endpoint:
            self.close()
            return None
        from torch.distributed import TCPStore  # imported long since; but not by all who fork

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
        """Listen no longer in this process."""
        self._socket.close()
