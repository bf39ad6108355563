"""Ports that are chosen now and bound later."""

from pathlib import Path

import pytest

from helpers import has_ipv6
from twinckpt.errors import ConfigurationError
from twinckpt.net.ports import free_port

GIVEN_UNASKED = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_free_port_is_none_that_a_connection_is_given_meanwhile():
    """A machine that waits for its turn binds it minutes after it was chosen."""
    first, last = map(int, GIVEN_UNASKED.read_text().split())
    if first < 30_000:
        pytest.skip("this system gives such ports to connections, too")
    assert not any(first <= free_port() <= last for _ in range(100))


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6")
def test_any_address_of_this_machine_may_be_its_host():
    """IPv6, too."""
    assert free_port("::1") > 0


def test_the_address_of_another_machine_is_refused():
    with pytest.raises(ConfigurationError, match=r"host=192\.0\.2\.1: .* name an address of this"):
        free_port("192.0.2.1")
