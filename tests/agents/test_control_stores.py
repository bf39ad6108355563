"""Both control stores elect one root that all follow; etcd elects another when that is gone."""

import base64
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid

import pytest

from twinckpt.agents.candidate import stand_by
from twinckpt.agents.config import RootAgentConfig
from twinckpt.agents.control_store import open_store, split_address
from twinckpt.agents.etcd_client import Access, EtcdClient
from twinckpt.agents.job_settings import JobSettings
from twinckpt.agents.launch import RootCandidate
from twinckpt.agents.root_watch import follow_root
from twinckpt.core.adoption import GenerationRecord
from twinckpt.core.messages import Resume
from twinckpt.errors import AgentUnavailableError, ConfigurationError
from twinckpt.net.ports import free_port

HOST = "127.0.0.1"
RECORD = GenerationRecord(7, ("a", "b"), Resume(30, 6_000_004))
TIMEOUT_S = 30.0


def hold(leadership):
    """Let a leadership hold its keys, as a root agent does; return the thread."""
    thread = threading.Thread(target=leadership.hold, daemon=True)
    thread.start()
    return thread


@pytest.fixture(params=["embedded", "etcd"])
def endpoint(request):
    """Where a job's store is, for each kind of store."""
    if request.param == "embedded":
        return f"{HOST}:{free_port()}"
    return f"{request.getfixturevalue('etcd').endpoint}/{uuid.uuid4().hex}"


@pytest.fixture
def in_etcd(etcd):
    """A new job's endpoint in etcd."""
    return f"{etcd.endpoint}/{uuid.uuid4().hex}"


def test_followers_find_the_root_that_is_elected(endpoint):
    """At the address where it listens."""
    leadership = open_store(endpoint).campaign(HOST)
    root = open_store(endpoint).root()
    assert (root.host, root.port) == leadership.listener.getsockname()


def test_what_a_root_says_is_sent_at_once(endpoint):
    """Otherwise each message would wait for the previous acknowledgement: 40 ms by default."""
    listener = open_store(endpoint).campaign(HOST).listener
    with socket.create_connection(listener.getsockname()), listener.accept()[0] as connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_while_a_root_lives_no_other_is_elected(endpoint):
    """However often another candidate tries."""
    leadership = open_store(endpoint).campaign(HOST)
    hold(leadership)
    candidate = open_store(endpoint)
    assert [candidate.campaign(HOST) for _ in range(5)] == [None] * 5


def test_of_candidates_at_the_same_time_one_is_elected(endpoint):
    """The store decides, not the candidates."""
    found = []

    def campaign():
        leadership = open_store(endpoint).campaign(HOST)
        if leadership is not None:
            hold(leadership)
        found.append(leadership)

    threads = [threading.Thread(target=campaign) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(leadership is not None for leadership in found) == 1


def test_after_a_root_that_listens_no_more_another_is_elected(endpoint, until):
    """Its kernel says so, even while its lease is renewed."""
    former = open_store(endpoint).campaign(HOST)
    hold(former)
    assert open_store(endpoint).campaign(HOST) is None
    former.listener.close()
    successor = until(lambda: open_store(endpoint).campaign(HOST), "successor")
    root = open_store(endpoint).root()
    assert (root.host, root.port) == successor.listener.getsockname()


def test_a_first_root_finds_no_record(endpoint):
    """There is nothing to take over."""
    assert open_store(endpoint).campaign(HOST).record is None


def test_a_store_is_named_by_the_endpoint():
    """Anything else is refused with what is possible."""
    assert open_store("node7:1234").root().port == 1234
    assert open_store("").root().port == 29400
    with pytest.raises(ConfigurationError, match="etcd://HOST:PORT"):
        open_store("http://node7:x")
    with pytest.raises(ConfigurationError, match="no HOST:PORT"):
        open_store("etcd://node7:0")
    assert split_address("[::1]:5", 1) == ("::1", 5)
    assert split_address("node7", 1) == ("node7", 1)


def test_a_successor_finds_the_record_that_was_left(in_etcd, until):
    """And the next one finds it too, if nothing was left since."""
    former = open_store(in_etcd).campaign(HOST)
    hold(former)
    former.leave(RECORD)
    until(lambda: former.record == RECORD, "record")
    former.listener.close()
    successor = open_store(in_etcd).campaign(HOST)
    assert successor.record == RECORD
    hold(successor)
    successor.leave(None)
    until(lambda: successor.record is None, "removal")
    successor.listener.close()
    assert open_store(in_etcd).campaign(HOST).record is None


def test_a_root_that_renews_its_lease_no_more_is_replaced(in_etcd, until):
    """A frozen machine still takes connections."""
    began_s = time.monotonic()
    silent = open_store(in_etcd).campaign(HOST)
    candidate = open_store(in_etcd)
    successor = until(lambda: candidate.campaign(HOST), "successor")
    assert time.monotonic() - began_s > 0.5  # it was given the time to renew
    assert successor.listener.getsockname() != silent.listener.getsockname()


def test_a_root_that_was_replaced_resigns_and_writes_nothing_more(in_etcd, until):
    """It may have been frozen meanwhile."""
    former = open_store(in_etcd).campaign(HOST)
    candidate = open_store(in_etcd)
    successor = until(lambda: candidate.campaign(HOST), "successor")
    former.leave(RECORD)
    thread = hold(former)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    successor.listener.close()
    assert open_store(in_etcd).campaign(HOST).record is None


def test_followers_hear_of_a_successor(in_etcd, until):
    """Pushed by etcd, not asked for."""
    heard = []
    follow = (open_store(in_etcd), lambda root: heard.append(root.port))
    threading.Thread(target=follow_root, args=follow, daemon=True).start()
    ports = []
    for _ in range(3):
        leadership = until(lambda: open_store(in_etcd).campaign(HOST), "root")
        ports.append(leadership.listener.getsockname()[1])
        until(lambda: heard == ports, "news")
        leadership.listener.close()


def test_a_candidate_stands_by_until_the_root_is_gone(in_etcd, until):
    """Or until the process that it serves has ended."""
    root = open_store(in_etcd).campaign(HOST)
    hold(root)
    served = subprocess.Popen(["sleep", "600"])
    elected = []
    config = RootAgentConfig(HOST, 0, watched=(served.pid,))

    def stand():
        elected.append(stand_by(open_store(in_etcd), config))

    threads = [threading.Thread(target=stand) for _ in range(2)]
    for thread in threads:
        thread.start()
    root.listener.close()
    until(lambda: elected, "successor")
    hold(elected[0])
    served.kill()
    served.wait()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert elected[1:] == [None]


def test_a_root_writes_its_key_anew_when_etcd_has_lost_it(in_etcd, etcd, until):
    """A lost etcd is not a lost root."""
    root = open_store(in_etcd).campaign(HOST)
    hold(root)
    root.leave(RECORD)
    until(lambda: root.record == RECORD, "record")
    candidate = open_store(in_etcd)
    assert candidate.campaign(HOST) is None
    lost = {"key": encoded(f"/twinckpt/{in_etcd.rpartition('/')[2]}/"), "range_end": encoded("~")}
    EtcdClient([(HOST, etcd.ports[0])], Access()).call("kv/deleterange", lost)
    assert candidate.campaign(HOST) is None
    assert until(candidate.root, "root").port == root.listener.getsockname()[1]
    root.listener.close()
    assert until(lambda: candidate.campaign(HOST), "successor").record == RECORD


@pytest.mark.timeout(120)
def test_members_of_etcd_may_die_as_long_as_most_live(three_etcds, until):
    """Root, candidates and followers go on with those that are left, and wait for a majority."""
    endpoint = f"{three_etcds.endpoint}/job"
    root = open_store(endpoint).campaign(HOST)
    holding = hold(root)
    heard = []
    follow = (open_store(endpoint), lambda entry: heard.append(entry.port))
    threading.Thread(target=follow_root, args=follow, daemon=True).start()
    until(lambda: heard, "root")
    three_etcds.kill(0)
    root.leave(RECORD)
    until(lambda: root.record == RECORD, "record")
    three_etcds.kill(1)
    with pytest.raises(AgentUnavailableError, match="start etcd"):
        open_store(endpoint).root()
    three_etcds.restart(0)
    candidate = open_store(endpoint)
    assert until(candidate.root, "root").port == root.listener.getsockname()[1]
    assert holding.is_alive()
    root.listener.close()
    successor = until(lambda: candidate.campaign(HOST), "successor")
    assert successor.record == RECORD
    until(lambda: heard[-1] == successor.listener.getsockname()[1], "news of the successor")


def test_a_frozen_member_delays_but_does_not_stop(three_etcds):
    """It takes connections and never answers; if it is the leader, the others elect one first."""
    endpoint = f"{three_etcds.endpoint}/job"
    leadership = open_store(endpoint).campaign(HOST)
    for member in three_etcds.members:
        member.send_signal(signal.SIGSTOP)
        try:
            root = open_store(endpoint).root()
        finally:
            member.send_signal(signal.SIGCONT)
        assert root.port == leadership.listener.getsockname()[1]


def test_a_launcher_is_told_at_once_of_a_port_that_another_program_has():
    """Bound but not listened at, as one end of a connection: nothing answers for half a minute."""
    with socket.socket() as held:
        held.bind((HOST, 0))
        port = held.getsockname()[1]
        with pytest.raises(AgentUnavailableError, match="whether another program has that port"):
            RootCandidate(JobSettings(), f"{HOST}:{port}", "job").start()


def test_a_launcher_is_told_at_once_that_no_etcd_answers():
    """Not after the timeout of a rendezvous."""
    candidate = RootCandidate(JobSettings(), f"etcd://{HOST}:{free_port()}", "job")
    with pytest.raises(AgentUnavailableError, match=r"start etcd, or name its members"):
        candidate.start()


def test_a_candidate_that_dies_is_replaced(in_etcd, monkeypatch, until):
    """Otherwise a job whose roots are killed one after the other would run out of candidates."""
    monkeypatch.setenv("TWINCKPT_SECRET", "s" * 32)
    endpoint, _, job = in_etcd.rpartition("/")
    candidate = RootCandidate(JobSettings(), endpoint, job)
    candidate.start()
    killed = set()
    for _ in range(2):
        root = until(lambda: [r for r in [candidate.store.root()] if r not in killed], "root")[0]
        killed.add(root)
        os.kill(candidate.process.pid, signal.SIGKILL)
        until(lambda: (candidate.keep(), candidate.store.root() not in killed)[1], "successor")
    candidate.process.kill()
    candidate.process.wait()


@pytest.mark.parametrize("is_own", [True, False])
def test_an_embedded_root_that_dies_is_started_again(is_own, monkeypatch, until):
    """Its machine does so while it waits for others, whoever of the machine had started it."""
    monkeypatch.setenv("TWINCKPT_SECRET", "s" * 32)
    endpoint = f"{HOST}:{free_port()}"
    candidate, other = (RootCandidate(JobSettings(), endpoint, "job") for _ in range(2))
    (candidate if is_own else other).start()
    candidate.start()
    first = (candidate if is_own else other).process
    first.kill()
    first.wait()

    def listens():
        candidate.keep()
        with socket.socket() as probe:
            return not probe.connect_ex((HOST, int(endpoint.rpartition(":")[2])))

    until(listens, "another root")
    candidate.process.kill()
    candidate.process.wait()


@pytest.fixture
def guarded_etcd(tmp_path, start_etcd):
    """An etcd that asks for TLS, and for the user `alice` with the password `wonderland`."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH to make a certificate with")
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    named = ["-subj", "/CN=etcd", "-addext", "subjectAltName=IP:127.0.0.1", "-nodes", "-days", "1"]
    files = ["-keyout", key, "-out", cert]
    subprocess.run([*made, *named, *files], check=True, capture_output=True)
    cluster = start_etcd(tmp_path, 1, (cert, key))
    client = EtcdClient([(HOST, cluster.ports[0])], Access(ca_file=cert))
    for user in ("root", "alice"):
        client.call("auth/user/add", {"name": user, "password": "wonderland"})
    client.call("auth/user/grant", {"user": "root", "role": "root"})
    client.call("auth/role/add", {"name": "twinckpt"})
    keys = {"key": encoded("/twinckpt/"), "range_end": encoded("/twinckpt0")}
    allowed = {"permType": "READWRITE", **keys}
    client.call("auth/role/grant", {"name": "twinckpt", "perm": allowed})
    client.call("auth/user/grant", {"user": "alice", "role": "twinckpt"})
    client.call("auth/enable", {})
    yield cluster, cert
    cluster.stop()


def encoded(key):
    """Return a key as etcd's JSON has it."""
    return base64.b64encode(key.encode()).decode()


def test_an_etcd_with_tls_and_users(guarded_etcd, monkeypatch, until):
    """Both come from the environment, never from a command line."""
    cluster, cert = guarded_etcd
    endpoint = f"{cluster.endpoint}/job"
    with pytest.raises(AgentUnavailableError):
        open_store(endpoint).root()
    monkeypatch.setenv("TWINCKPT_ETCD_CA", cert)
    with pytest.raises(ConfigurationError, match="TWINCKPT_ETCD_USER"):
        open_store(endpoint).root()
    monkeypatch.setenv("TWINCKPT_ETCD_USER", "alice")
    monkeypatch.setenv("TWINCKPT_ETCD_PASSWORD", "wrong")
    with pytest.raises(ConfigurationError, match="TWINCKPT_ETCD_PASSWORD"):
        open_store(endpoint).root()
    monkeypatch.setenv("TWINCKPT_ETCD_PASSWORD", "wonderland")
    leadership = open_store(endpoint).campaign(HOST)
    hold(leadership)
    leadership.leave(RECORD)
    until(lambda: leadership.record == RECORD, "record")
    store = open_store(endpoint)
    assert store.root().port == leadership.listener.getsockname()[1]
    cluster.kill(0)  # tokens are in its memory
    cluster.restart(0)
    assert store.root().port == leadership.listener.getsockname()[1]


def test_a_root_and_its_followers_go_on_once_etcd_refuses_them_no_more(
    guarded_etcd, monkeypatch, until, caplog
):
    """As while somebody changes what its users may do."""
    cluster, cert = guarded_etcd
    endpoint = f"{cluster.endpoint}/job"
    for name, value in (("CA", cert), ("USER", "alice"), ("PASSWORD", "wonderland")):
        monkeypatch.setenv(f"TWINCKPT_ETCD_{name}", value)
    operator = EtcdClient([(HOST, cluster.ports[0])], Access(cert, "", "", "root", "wonderland"))
    leadership = open_store(endpoint).campaign(HOST)
    holding, heard = hold(leadership), []
    follow = (open_store(endpoint), lambda root: heard.append(root.port))
    following = threading.Thread(target=follow_root, args=follow, daemon=True)
    following.start()
    until(lambda: heard, "root")

    operator.call("auth/user/revoke", {"name": "alice", "role": "twinckpt"})
    for who in ("this root goes on", "is followed"):
        until(lambda who=who: any(who in said for said in caplog.messages), "refusal")
    operator.call("auth/user/grant", {"user": "alice", "role": "twinckpt"})
    leadership.leave(RECORD)
    until(lambda: leadership.record == RECORD, "record")
    assert holding.is_alive()
    assert following.is_alive()


def test_a_password_is_in_no_message():
    """Printed objects end up in logs."""
    assert "wonderland" not in repr(Access(user="alice", password="wonderland"))
