"""Emulated hosts: one network namespace each, on a common bridge, whose links can be cut.

The namespaces have no names: nothing but this process and those that it starts hold them, so the
kernel removes them and all links in them when these end, however they end. Nothing of the host's
own network is touched. Needs root and `ip` and `tc` of iproute2.
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
import threading

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_NOBODY = "02:00:00:00:ff:ff"


def why_not():
    """Return why this user can have no network here; an empty string if it can."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "network namespaces are set up with ip and tc: install them, or see PATH (/usr/sbin)"
    try:
        os.close(_new_namespace())
        Network(["a", "b"]).close()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this user may not create network namespaces with links: {error}"
    return ""


class Network:
    """Hosts of these names, each with an address on one bridge; use it in a `with` statement."""

    def __init__(self, hosts):
        self._hosts = {name: number for number, name in enumerate(hosts, 1)}
        self._switch = _new_namespace()
        self._namespaces = {name: _new_namespace() for name in hosts}
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Let go of the namespaces; those without processes vanish."""
        for fd in (self._switch, *self._namespaces.values()):
            os.close(fd)

    def address(self, name):
        """Return a host's address."""
        return f"10.77.0.{self._hosts[name]}"

    @contextlib.contextmanager
    def inside(self, name):
        """Be on a host: sockets made and processes started by this thread are there."""
        with _inside(self._namespaces[name]):
            yield

    def cut(self, source, target):
        """Lose silently all that `source` sends to `target`, and only that."""
        self._lead(source, target, _NOBODY)

    def heal(self):
        """Let everybody reach everybody, at full speed."""
        for source, target in itertools.permutations(self._hosts, 2):
            self._lead(source, target, self._mac(target))
        for name in self._hosts:
            with self.inside(name):
                subprocess.run(["tc", "qdisc", "del", "dev", "eth0", "root"], capture_output=True)

    def isolate(self, name, *, outgoing=True, incoming=True):
        """Cut a host off from all others, in one direction or both."""
        for other in self._hosts.keys() - {name}:
            if outgoing:
                self.cut(name, other)
            if incoming:
                self.cut(other, name)

    def slow_down(self, name, bytes_per_s):
        """Limit what a host sends; raises CalledProcessError if the kernel cannot."""
        with self.inside(name):
            run(
                f"tc qdisc replace dev eth0 root tbf rate {bytes_per_s * 8}bit "
                "burst 16kb latency 200ms"
            )

    def _connect(self):
        commands = ["link add bridge type bridge", "link set bridge up"]
        for name, number in self._hosts.items():
            there = f"/proc/{os.getpid()}/fd/{self._namespaces[name]}"
            commands += [
                f"link add port{number} type veth peer name eth0 netns {there}",
                f"link set port{number} master bridge",
                f"link set port{number} up",
            ]
        with _inside(self._switch):
            run("ip -batch -", commands)
        for name in self._hosts:
            with self.inside(name):
                commands = [
                    "link set lo up",
                    f"link set eth0 address {self._mac(name)}",
                    f"address add {self.address(name)}/24 dev eth0",
                    "link set eth0 up",
                ]
                run("ip -batch -", commands)
        self.heal()

    def _lead(self, source, target, mac):
        with self.inside(source):
            run(f"ip neigh replace {self.address(target)} lladdr {mac} dev eth0 nud permanent")

    def _mac(self, name):
        return f"02:00:00:00:00:{self._hosts[name]:02x}"


def run(command, lines=()):
    """Run a command with lines as its input; raises CalledProcessError with what it said."""
    text = "\n".join(lines)
    done = subprocess.run(command.split(), input=text, text=True, capture_output=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, f"{command}: {done.stderr.strip()}")


def _new_namespace():
    """Return a descriptor of a new network namespace, which lives while it is held."""
    own = _own_namespace()
    try:
        _check(_LIBC.unshare(_CLONE_NEWNET))
        try:
            return _own_namespace()
        finally:
            _check(_LIBC.setns(own, _CLONE_NEWNET))
    finally:
        os.close(own)


@contextlib.contextmanager
def _inside(namespace):
    own = _own_namespace()
    try:
        _check(_LIBC.setns(namespace, _CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_LIBC.setns(own, _CLONE_NEWNET))
    finally:
        os.close(own)


def _own_namespace():
    return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)


def _check(result):
    if result:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
