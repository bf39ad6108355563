"""TLS for links that leave a trusted network: mutual, 1.3 or newer, from three PEM files.

Both ends show a certificate that the job's CA signed. Names in it are not compared with host
names: machines come and go, and who is who is proved with the job's secret on top, over a
message that covers the server's certificate (`net.auth`). So another holder of a certificate of
the same CA cannot stand in between.
"""

import hashlib
import socket
import ssl
from dataclasses import dataclass, fields

from twinckpt.errors import AuthenticationError, ConfigurationError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of a machine's certificate (with its chain), its private key, and the job's CA.

    All empty: no TLS.
    """

    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""

    def __post_init__(self) -> None:
        missing = [field.name for field in fields(self) if not getattr(self, field.name)]
        if missing and len(missing) < len(fields(self)):
            raise ConfigurationError(
                f"TLS needs tls_cert, tls_key and tls_ca; not set: {', '.join(missing)}"
            )

    def load(self) -> "Tls | None":
        """Return the contexts; None if no file is set.

        Raises ConfigurationError for files that cannot be read, do not belong together, or
        that peers with the same CA would refuse, because they have expired for example.
        """
        if not self.tls_cert:
            return None
        for field in fields(self):
            path = getattr(self, field.name)
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise ConfigurationError(f"{field.name}: cannot read {path}: {error}") from error
        return Tls(self)


class Tls:
    """The two sides of TLS connections as one machine has them."""

    def __init__(self, files: TlsFiles) -> None:
        self.server = _context(files, ssl.PROTOCOL_TLS_SERVER)
        self.server.num_tickets = 0  # an idle connection stays silent
        self.client = _context(files, ssl.PROTOCOL_TLS_CLIENT)
        # What this machine would prove as a server.
        self.fingerprint = _meet_itself(files, self.client, self.server)

    def accept(self, sock: socket.socket) -> ssl.SSLSocket:
        """Secure a connection that was accepted; `sock` has a timeout, and is used up.

        Raises AuthenticationError, as `call` does.
        """
        return _wrap(self.server, sock, server_side=True)

    def call(self, sock: socket.socket) -> ssl.SSLSocket:
        """Secure a connection that was made; `sock` has a timeout, and is used up."""
        return _wrap(self.client, sock, server_side=False)


def fingerprint(secured: ssl.SSLSocket | ssl.SSLObject) -> bytes:
    """Return the digest of the certificate that the other end showed."""
    return hashlib.sha256(secured.getpeercert(binary_form=True) or b"").digest()


def refusal(error: Exception) -> AuthenticationError:
    """Return what a failed handshake means and what to do about it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthenticationError(
            f"the peer's certificate is refused: {error.verify_message}; it must be signed by "
            "tls_ca, which all machines of a job share, and be valid now"
        )
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        reason = (error.reason or "").lower().replace("_", " ")
        return AuthenticationError(
            f"the peer refused the TLS handshake ({reason}): tls_cert must be signed by the "
            "tls_ca that all machines of a job share, and be valid now"
        )
    return AuthenticationError(
        f"no TLS handshake with the peer ({error or type(error).__name__}): set tls_cert, tls_key "
        "and tls_ca on all machines, or on none"
    )


def _wrap(context: ssl.SSLContext, sock: socket.socket, *, server_side: bool) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(sock, server_side=server_side)
    except OSError as error:
        sock.close()
        raise refusal(error) from error


def _context(files: TlsFiles, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(files.tls_cert, files.tls_key, password=_no_password)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"tls_cert={files.tls_cert} and tls_key={files.tls_key} are no certificate and "
            f"unencrypted key that belong together, in PEM: {error.reason or error}"
        ) from error
    try:
        context.load_verify_locations(files.tls_ca)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"tls_ca={files.tls_ca} holds no certificate in PEM: {error.reason or error}"
        ) from error
    return context


def _no_password() -> str:
    """Return an empty password: else OpenSSL would ask for one at the terminal, and wait."""
    return ""


def _meet_itself(files: TlsFiles, client: ssl.SSLContext, server: ssl.SSLContext) -> bytes:
    """Shake hands with itself in memory, as peers will; return the own certificate's digest."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(2):  # client hello, server's part, client's part, end
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                why = getattr(error, "verify_message", "") or error.reason
                raise ConfigurationError(
                    f"tls_cert={files.tls_cert} would be refused by other machines: {why}; it "
                    f"must be signed by tls_ca={files.tls_ca}, be valid now, and if it is limited "
                    "to a purpose, serve both server and client"
                ) from error
    return fingerprint(ends[0])
