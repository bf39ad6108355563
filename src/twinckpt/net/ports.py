"""A port for somebody who binds it later."""

import secrets
import socket

from twinckpt.errors import ConfigurationError
from twinckpt.net.bulk import family_of

# Below those that Linux gives by itself to connections and to servers that ask for any port, and
# below the NodePorts of Kubernetes: a machine that waits for its turn binds its own minutes later.
_PORTS = range(20_000, 30_000)
_NUM_TRIALS = 20


def free_port(host: str = "127.0.0.1") -> int:
    """Return a free port of this machine, if possible one that the kernel never gives unasked.

    Raises ConfigurationError if `host` is not this machine.
    """
    for port in [*(secrets.choice(_PORTS) for _ in range(_NUM_TRIALS)), 0]:
        try:
            with socket.create_server((host, port), family=family_of(host)) as probe:
                return int(probe.getsockname()[1])
        except OSError as error:
            reason = error.strerror
    raise ConfigurationError(
        f"host={host}: {reason}; name an address of this machine that its peers reach"
    )
