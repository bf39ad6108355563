"""TLS between real sockets: nothing readable passes, and nobody without a certificate gets in."""

import contextlib
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import threading

import psutil
import pytest

from twinckpt.agents.config import RootAgentConfig, WorkerAgentConfig
from twinckpt.agents.job_settings import JobSettings
from twinckpt.agents.process import start_root_agent
from twinckpt.cli import main
from twinckpt.cli.status import ask
from twinckpt.core.messages import Address
from twinckpt.errors import AgentUnavailableError, AuthenticationError, ConfigurationError
from twinckpt.experiments.agent_cluster import AgentCluster, AgentMachine
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import Seal
from twinckpt.net.bulk import BulkClient, BulkServer
from twinckpt.net.ports import free_port
from twinckpt.net.tls import TlsFiles, refusal

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes the certificates: install it"
)

SECRET = b"a secret of the job that is long"
SIZE_BYTES = (3 << 20) + 123
MARK = b"a word of the state that nobody else may read"


class Authority:
    """A CA in a directory, and certificates that it signs."""

    def __init__(self, directory, name):
        self._directory, self.name = directory, name
        self.certificate = directory / f"{name}.pem"
        openssl(
            *f"req -x509 -nodes -days 2 -subj /CN={name}".split(), *NEW_KEY,
            "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip

    @property
    def _key(self):
        return self._directory / f"{self.name}.key"

    def files(self, name, days=2, ca=None):
        """Return a new certificate of this authority, its key, and whom it trusts."""
        made = [self._directory / f"{self.name}-{name}.{end}" for end in ("pem", "key", "csr")]
        certificate, key, request = made
        openssl("req", "-nodes", "-subj", f"/CN={name}", *NEW_KEY, "-keyout", key, "-out", request)
        openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key,
            "-days", days, "-out", certificate,
        )  # fmt: skip
        return TlsFiles(str(certificate), str(key), str((ca or self).certificate))


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Relay:
    """Passes bytes on to a port, and keeps a copy of all of them.

    With `inside` and `outside` it ends the TLS of both sides and reads what is in it.
    """

    def __init__(self, port, inside=None, outside=None):
        self._target, self._inside, self._outside = port, inside, outside
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.seen = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                caller, _ = self._listener.accept()
                called = socket.create_connection(("127.0.0.1", self._target))
                if self._inside:
                    caller = self._inside.wrap_socket(caller, server_side=True)
                    called = self._outside.wrap_socket(called)
            except OSError:
                return
            for ends in ((caller, called), (called, caller)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source, target):
        try:
            while piece := source.recv(1 << 16):
                self.seen += piece
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self._listener.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"), "ours")


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("others"), "theirs")


@pytest.fixture(scope="module")
def files(authority):
    return authority.files("machine")


@pytest.fixture(scope="module")
def expired(authority):
    return authority.files("expired", days=0)


@pytest.fixture(scope="module")
def store():
    """A machine's memory that holds one shard, full of a word that can be looked for."""
    found = InMemoryCheckpoint()
    found.reserve(3, SIZE_BYTES)
    buffer = found.slot(3, found.begin(3, 5)).buffer[:SIZE_BYTES]
    buffer[:] = (MARK * (SIZE_BYTES // len(MARK) + 1))[:SIZE_BYTES]
    found.seal(Seal.of(buffer, rank=3, ticket=5, step=50, home=1, world_size=4))
    return found


@pytest.fixture
def serve(store):
    """A function that serves the shard under TLS files, or without TLS."""
    servers = []

    def start(files):
        servers.append(BulkServer(store, SECRET, "127.0.0.1", files.load() if files else None))
        return servers[-1].port

    yield start
    for server in servers:
        server.close()


def fetch(port, files):
    """Fetch the shard, and return its bytes."""
    target = memoryview(bytearray(SIZE_BYTES))
    client = BulkClient(SECRET, files.load() if files else None)
    client.fetch(Address("sender", "127.0.0.1", port), 3, 5, target).verify(target)
    return target


@pytest.mark.parametrize("is_secured", [True, False])
def test_a_shard_arrives_bit_identical_and_unreadable_on_its_way(serve, store, files, is_secured):
    """Without TLS the same relay reads it: the proof that it would see."""
    relay = Relay(serve(files if is_secured else None))
    assert fetch(relay.port, files if is_secured else None) == store.entry(3, 5).data
    relay.close()
    assert len(relay.seen) > SIZE_BYTES
    assert (MARK in relay.seen) != is_secured
    assert SECRET not in relay.seen


@pytest.fixture(params=[True, False], ids=["tls", "plain"])
def root(request, files, monkeypatch, until):
    """A root agent in a process of its own: its port and files."""
    monkeypatch.setenv("TWINCKPT_SECRET", SECRET.decode())
    found = files if request.param else TlsFiles()
    port = free_port()
    process = start_root_agent(RootAgentConfig("127.0.0.1", port, tls=found))

    def listens():
        assert process.poll() is None
        with socket.socket() as probe:
            return not probe.connect_ex(("127.0.0.1", port))

    until(listens, "root agent")
    yield port, found
    process.kill()
    process.wait()


def use(monkeypatch, files):
    """Set the files in the environment, as a user does."""
    for name in ("tls_cert", "tls_key", "tls_ca"):
        monkeypatch.setenv(f"TWINCKPT_{name.upper()}", getattr(files, name))


def test_what_root_and_worker_say_is_unreadable(root, monkeypatch, tmp_path):
    """The names of machines stand in the first message of each link; status repeats them."""
    port, files = root
    use(monkeypatch, files)
    relay = Relay(port)
    name = f"machine-{secrets.token_hex(8)}"
    config = WorkerAgentConfig(
        machine=name,
        socket_name=f"twinckpt-{name}",
        root_host="127.0.0.1",
        root_port=relay.port,
        watched=(os.getpid(),),
        log_file=str(tmp_path / "agent.log"),
        tls=files,
    )
    machine = AgentMachine(config, SECRET)
    try:
        machine.join(1)
        machine.wait_until_formed(1)
        assert [found.name for found in ask("127.0.0.1", relay.port).machines] == [name]
    finally:
        machine.kill()
        machine.bury()
        relay.close()
    assert (name.encode() in relay.seen) == (not files.tls_cert)


def test_status_without_the_certificates_says_what_to_set(root, monkeypatch, files, capsys):
    """The same with certificates if the job has none; nothing hangs in either case."""
    port, of_root = root
    use(monkeypatch, TlsFiles() if of_root.tls_cert else files)
    assert main(["status", f"127.0.0.1:{port}"]) == 2
    assert "set tls_cert, tls_key and tls_ca" in capsys.readouterr().err


def test_a_caller_in_plain_text_is_refused_and_told(serve, files):
    with pytest.raises(AuthenticationError, match="if the job uses TLS, set tls_cert"):
        fetch(serve(files), None)


def test_a_caller_with_tls_is_told_that_the_job_has_none(serve, files):
    with pytest.raises(AuthenticationError, match="on all machines, or on none"):
        fetch(serve(None), files)


def test_certificates_of_another_authority_are_refused(serve, authority, other_authority, files):
    """By the caller, and by the one called if the caller trusts everybody."""
    theirs = other_authority.files("machine")
    with pytest.raises(AuthenticationError, match="must be signed by tls_ca"):
        fetch(serve(files), theirs)
    sock = socket.create_connection(("127.0.0.1", serve(files)), timeout=5)
    with pytest.raises(AuthenticationError, match="alert unknown ca"):
        call_raw(sock, theirs)


def call_raw(sock, files, **limits):
    """Call without any checks; return how the call was refused, in our words."""
    with raw_context(files, ssl.PROTOCOL_TLS_CLIENT, **limits).wrap_socket(sock) as secured:
        try:
            secured.recv(1)
        except ssl.SSLError as error:
            raise refusal(error) from error


def raw_context(files, protocol, version=ssl.TLSVersion.TLSv1_3):
    """Return a context that trusts everybody."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    context.load_cert_chain(files.tls_cert, files.tls_key)
    return context


def test_an_expired_certificate_is_refused_on_both_sides(serve, files, expired):
    sock = socket.create_connection(("127.0.0.1", serve(files)), timeout=5)
    with pytest.raises(AuthenticationError, match=r"certificate expired.*be valid now"):
        call_raw(sock, expired)
    relay = Relay(
        serve(files),
        raw_context(expired, ssl.PROTOCOL_TLS_SERVER),
        raw_context(files, ssl.PROTOCOL_TLS_CLIENT),
    )
    with pytest.raises(AuthenticationError, match=r"has expired.*be valid now"):
        fetch(relay.port, files)
    relay.close()


def test_older_versions_of_tls_are_refused(serve, files):
    sock = socket.create_connection(("127.0.0.1", serve(files)), timeout=5)
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        call_raw(sock, files, version=ssl.TLSVersion.TLSv1_2)


def test_nobody_with_another_certificate_of_the_authority_stands_in_between(
    serve, authority, files
):
    """Without the secret it can only pass on the proofs, and they cover the certificate."""
    between = authority.files("between")
    sides = [
        raw_context(between, protocol)
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    ]
    relay = Relay(serve(files), *sides)
    with pytest.raises(AuthenticationError):
        fetch(relay.port, files)
    relay.close()
    assert relay.seen
    assert MARK not in relay.seen


def test_callers_who_never_begin_the_handshake_keep_nobody_out(root, monkeypatch, until):
    """The first of too many are let go at once; a time-out would take seconds."""
    port, files = root
    use(monkeypatch, files)
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(400)]
    try:
        assert ask("127.0.0.1", port).machines == ()
        until(lambda: not is_open(silent[0]), "the first is let go", timeout_s=2)
        assert is_open(silent[-1])
    finally:
        for sock in silent:
            sock.close()


def is_open(sock):
    """Return whether the other end has not hung up; what it has said is read."""
    with contextlib.suppress(BlockingIOError):
        return all(sock.recv(64, socket.MSG_DONTWAIT) for _ in range(2))
    return True


def test_a_wrong_secret_is_refused_under_tls_too(serve, files):
    client = BulkClient(b"another secret, just as long....", files.load())
    address = Address("sender", "127.0.0.1", serve(files))
    with pytest.raises(AuthenticationError):
        client.fetch(address, 3, 5, memoryview(bytearray(SIZE_BYTES)))


def test_settings_that_cannot_work_are_refused_before_anything_starts(
    authority, other_authority, files, expired, tmp_path
):
    """With the name of the setting, and what is wrong."""
    key, ca = files.tls_key, files.tls_ca
    locked = tmp_path / "locked.key"
    openssl("ec", "-in", key, "-aes256", "-passout", "pass:word", "-out", locked)
    one_way = one_way_certificate(authority, files, tmp_path)
    cases = [
        (TlsFiles(*[files.tls_cert] * 3), {"tls_key": ""}, "not set: tls_key"),
        (files, {"tls_ca": str(tmp_path / "nowhere.pem")}, r"tls_ca: cannot read .*nowhere\.pem"),
        (files, {"tls_key": authority.files("x").tls_key}, "belong together"),
        (files, {"tls_key": str(locked)}, "unencrypted key"),
        (files, {"tls_ca": key}, "holds no certificate"),
        (files, {"tls_ca": str(other_authority.certificate)}, "must be signed by tls_ca"),
        (expired, {}, "has expired"),
        (files, {"tls_cert": one_way}, "serve both server and client"),
    ]
    for base, changes, message in cases:
        values = {name: getattr(base, name) for name in ("tls_cert", "tls_key", "tls_ca")}
        with pytest.raises(ConfigurationError, match=message):
            JobSettings.load({**values, **changes})
    assert JobSettings(tls_cert=files.tls_cert, tls_key=key, tls_ca=ca).tls == files


def one_way_certificate(authority, files, tmp_path):
    """Return a certificate that is good for servers only."""
    limits, request = tmp_path / "limits", tmp_path / "one_way.csr"
    limits.write_text("extendedKeyUsage=serverAuth\n")
    openssl("req", "-new", "-key", files.tls_key, "-subj", "/CN=x", "-out", request)
    openssl(
        "x509", "-req", "-in", request, "-CA", authority.certificate, "-CAkey", authority._key,
        "-days", 2, "-extfile", limits, "-out", tmp_path / "one_way.pem",
    )  # fmt: skip
    return str(tmp_path / "one_way.pem")


def test_a_job_recovers_a_lost_machine_over_tls(files, monkeypatch, tmp_path):
    """Replication, loss, and retrieval from the peer, all encrypted; every byte is compared."""
    use(monkeypatch, files)
    with AgentCluster(3, 2, "ring", 300_000, tmp_path) as cluster:
        committed = cluster.checkpoint()
        assert cluster.lose([1]) == committed
        for port in ports_of(cluster.agent_pids):
            context = raw_context(files, ssl.PROTOCOL_TLS_CLIENT)
            with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as secured:
                assert secured.version() == "TLSv1.3"


def ports_of(pids):
    """Return the TCP ports on which processes listen."""
    found = [c for pid in pids for c in psutil.Process(pid).net_connections("tcp")]
    return [c.laddr.port for c in found if c.status == psutil.CONN_LISTEN]


def test_without_the_settings_nothing_is_loaded():
    assert TlsFiles().load() is None
    with pytest.raises(AgentUnavailableError):
        ask("127.0.0.1", free_port())
