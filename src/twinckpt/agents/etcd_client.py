"""A client of etcd's v3 API over its JSON gateway: keys, leases, compare-and-swap, watches.

Every call goes to the member that answered last and, if it does not answer, to each of the others
(docs/decisions/0004). While a member is there but cannot answer, as when the leader was lost and
another one is being elected, all are asked again.
"""

import base64
import http.client
import json
import os
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twinckpt.errors import AgentUnavailableError, ConfigurationError

TIMEOUT_S = 1.0
ELECTION_S = 4.0  # etcd takes 1 to 2 s for it, or longer where a vote is split
_BETWEEN_ROUNDS_S = 0.1
DEFAULT_PORT = 2379
_EXPIRED_S = 1 << 31
_UNAUTHENTICATED, _FIRST_SERVER_ERROR = 401, 500


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach etcd: TLS if a certificate authority is named, a user if it asks for one."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> "Access":
        """Read `TWINCKPT_ETCD_CA`, `_CERT`, `_KEY`, `_USER` and `_PASSWORD`."""
        names = ("CA", "CERT", "KEY", "USER", "PASSWORD")
        return cls(*(os.environ.get(f"TWINCKPT_ETCD_{name}", "") for name in names))

    def tls(self) -> ssl.SSLContext | None:
        """Return the context of TLS connections, None for plain ones."""
        if not self.ca_file:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"the files of TWINCKPT_ETCD_CA, _CERT, _KEY: {error}"
            ) from error
        return context


@dataclass(frozen=True, slots=True)
class Value:
    """What a key holds, at which revision it was written, under which lease (0: none)."""

    data: bytes
    revision: int
    lease: int


class _NoAnswerError(Exception):
    """Members did not answer, or cannot: others might, or they themselves later if `is_there`."""

    def __init__(self, reason: str, is_there: bool = False) -> None:
        super().__init__(reason)
        self.is_there = is_there


class EtcdClient:
    """Blocking calls, for one thread at a time.

    Raises AgentUnavailableError where no member answers, and ConfigurationError where one refuses.
    """

    def __init__(self, members: Sequence[tuple[str, int]], access: Access) -> None:
        self._members = list(members)
        self._access = access
        self._tls = access.tls()
        self._token = ""

    def get(self, key: str) -> tuple[Value | None, int]:
        """Return what a key holds, None for nothing, and the store's revision."""
        answer = self.call("kv/range", {"key": _b64(key)})
        found = [
            Value(base64.b64decode(kv["value"]), int(kv["mod_revision"]), int(kv.get("lease", 0)))
            for kv in answer.get("kvs", [])
        ]
        return (found[0] if found else None), int(answer["header"]["revision"])

    def swap(
        self,
        key: str,
        revision: int,
        puts: dict[str, bytes],
        lease: int,
        deletes: Sequence[str],
    ) -> int:
        """Write `puts` and delete `deletes` if `key` is still of this revision (0: absent).

        Returns the new revision; 0 if somebody else was faster. If no member answers it may
        have happened all the same.
        """
        requests: list[dict[str, Any]] = [
            {"request_put": {"key": _b64(k), "value": _b64(v), "lease": str(lease)}}
            for k, v in puts.items()
        ]
        requests += [{"request_delete_range": {"key": _b64(k)}} for k in deletes]
        compare = {"key": _b64(key), "target": "MOD", "mod_revision": str(revision)}
        answer = self.call("kv/txn", {"compare": [compare], "success": requests})
        return int(answer["header"]["revision"]) if answer.get("succeeded") else 0

    def grant(self, ttl_s: int) -> int:
        """Return a new lease."""
        return int(self.call("lease/grant", {"TTL": str(ttl_s)})["ID"])

    def keep_alive(self, lease: int) -> bool:
        """Renew a lease; False if it has expired."""
        answer = self.call("lease/keepalive", {"ID": str(lease)})
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    def age_s(self, lease: int) -> int:
        """Return how long ago a lease was renewed, in whole seconds, rounded up."""
        answer = self.call("lease/timetolive", {"ID": str(lease)})
        left_s = int(answer.get("TTL", 0))
        return int(answer.get("grantedTTL", 0)) - left_s if left_s >= 0 else _EXPIRED_S

    def revoke(self, lease: int) -> None:
        """End a lease, and delete what was written under it."""
        self.call("lease/revoke", {"ID": str(lease)})

    def wait_for_change(self, key: str, revision: int, timeout_s: float) -> None:
        """Return once a key has changed since a revision of the store, or after `timeout_s`."""
        create = {"key": _b64(key), "start_revision": str(revision + 1)}
        body = {"create_request": create}

        def wait(response: http.client.HTTPResponse) -> None:
            try:
                while line := response.readline():
                    if "created" not in json.loads(line).get("result", {}):
                        return
            except TimeoutError:
                pass

        self._on_any_member("watch", body, timeout_s, wait)

    def call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a method of the API, such as "kv/range"."""
        answer: dict[str, Any] = self._on_any_member(
            method, body, TIMEOUT_S, lambda response: json.load(response)
        )
        return answer

    def _on_any_member(self, method: str, body: dict[str, Any], timeout_s: float, take: Any) -> Any:
        give_up_s = time.monotonic() + ELECTION_S
        while True:
            try:
                return self._on_each_member(method, body, timeout_s, take)
            except _NoAnswerError as error:
                if not error.is_there or time.monotonic() >= give_up_s:
                    raise AgentUnavailableError(
                        f"no etcd member answers ({error}): start etcd, or name its members in "
                        "--rdzv-endpoint=etcd://HOST:PORT,HOST:PORT"
                    ) from error
            time.sleep(_BETWEEN_ROUNDS_S)

    def _on_each_member(
        self, method: str, body: dict[str, Any], timeout_s: float, take: Any
    ) -> Any:
        reasons, is_any_there = [], False
        for _ in range(len(self._members) + bool(self._access.user)):  # a token may have expired
            try:
                if self._access.user and not self._token:
                    self._token = self._authenticate()
                return self._on_member(method, body, timeout_s, take)
            except _NoAnswerError as error:
                host, port = self._members[0]
                reasons.append(f"{host}:{port}: {error}")
                is_any_there |= error.is_there
                self._members.append(self._members.pop(0))
        raise _NoAnswerError("; ".join(reasons), is_any_there)

    def _authenticate(self) -> str:
        body = {"name": self._access.user, "password": self._access.password}
        return str(self._on_member("auth/authenticate", body, TIMEOUT_S, json.load)["token"])

    def _on_member(self, method: str, body: dict[str, Any], timeout_s: float, take: Any) -> Any:
        connection = self._connect(timeout_s)
        try:
            headers = {"Authorization": self._token} if self._token else {}
            connection.request("POST", f"/v3/{method}", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status < 400:
                return take(response)
            reason = _reason(response.read())
            if response.status == _UNAUTHENTICATED and self._token:
                self._token = ""
                raise _NoAnswerError(f"the token has expired: {reason}")
            if response.status >= _FIRST_SERVER_ERROR:
                raise _NoAnswerError(reason, is_there=True)
            raise ConfigurationError(
                f"etcd refuses {method}: {reason}; TWINCKPT_ETCD_USER and TWINCKPT_ETCD_PASSWORD "
                "name a user that may read and write /twinckpt/"
            )
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            is_there = isinstance(error, TimeoutError)
            raise _NoAnswerError(str(error) or type(error).__name__, is_there) from error
        finally:
            connection.close()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        host, port = self._members[0]
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=timeout_s)


def _b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200] or "an error without a reason"
