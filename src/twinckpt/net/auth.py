"""Mutual proof that both ends of a connection hold the job's secret.

It comes before any other byte is read, has fixed lengths, and the caller proves first:

    server → client   nonce
    client → server   nonce, HMAC(secret, "client", both nonces)
    server → client   HMAC(secret, "server", both nonces)

The exchange itself does no I/O; the drivers below run it on a socket or on asyncio streams.
It authenticates the connection, it does not encrypt it. Under TLS (`net.tls`) it comes after the
handshake, and both proofs cover the server's certificate as well.
"""

import asyncio
import hmac
import secrets
import socket
import ssl
import time
from collections.abc import Generator

from twinckpt.errors import AuthenticationError
from twinckpt.net.tls import Tls, fingerprint, refusal

NONCE_BYTES = 32
PROOF_BYTES = 32
HANDSHAKE_TIMEOUT_S = 5.0

# Yields bytes to send, or a number of bytes to receive; is sent what was received.
Exchange = Generator[bytes | int, bytes, None]

_TLS_HANDSHAKE = b"\x16\x03"
_PERHAPS_SECRET = "; is TWINCKPT_SECRET here what the job has, and is the port the job's?"
_PERHAPS_TLS = f"{_PERHAPS_SECRET} if the job uses TLS, set tls_cert, tls_key and tls_ca here too"


def server_exchange(secret: bytes, certificate: bytes = b"") -> Exchange:
    """Run the server's side; raises AuthenticationError for a caller without the secret.

    `certificate` is the fingerprint of the server's certificate, under TLS.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    yield nonce
    answer = yield NONCE_BYTES + PROOF_BYTES
    both = nonce + answer[:NONCE_BYTES] + certificate
    if not hmac.compare_digest(answer[NONCE_BYTES:], _proof(secret, b"client", both)):
        if answer.startswith(_TLS_HANDSHAKE):
            raise AuthenticationError(
                "the caller speaks TLS: set tls_cert, tls_key and tls_ca here too, or nowhere"
            )
        raise AuthenticationError("the caller does not hold this job's secret")
    yield _proof(secret, b"server", both)


def client_exchange(secret: bytes, certificate: bytes = b"") -> Exchange:
    """Run the client's side; raises AuthenticationError for a server without the secret."""
    server_nonce = yield NONCE_BYTES
    nonce = secrets.token_bytes(NONCE_BYTES)
    both = server_nonce + nonce + certificate
    yield nonce + _proof(secret, b"client", both)
    proof = yield PROOF_BYTES
    if not hmac.compare_digest(proof, _proof(secret, b"server", both)):
        raise AuthenticationError("what answers does not hold this job's secret" + _PERHAPS_SECRET)


def accept(sock: socket.socket, secret: bytes, tls: Tls | None) -> socket.socket:
    """Secure and authenticate a connection that was accepted; return the socket to go on with.

    Raises AuthenticationError, and has closed the connection then.
    """
    sock.settimeout(HANDSHAKE_TIMEOUT_S)
    if tls is None:
        return _authenticated(sock, server_exchange(secret))
    return _authenticated(tls.accept(sock), server_exchange(secret, tls.fingerprint))


def call(sock: socket.socket, secret: bytes, tls: Tls | None) -> socket.socket:
    """Secure and authenticate a connection that was made; the other side of `accept`."""
    sock.settimeout(HANDSHAKE_TIMEOUT_S)
    if tls is None:
        return _authenticated(sock, client_exchange(secret), _PERHAPS_TLS)
    secured = tls.call(sock)
    return _authenticated(secured, client_exchange(secret, fingerprint(secured)), _PERHAPS_SECRET)


async def accept_async(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes, tls: Tls | None
) -> None:
    """Secure and authenticate a connection that was accepted, before anything is read from it.

    Raises AuthenticationError.
    """
    if tls is not None:
        try:
            await writer.start_tls(tls.server, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S)
        except OSError as error:
            raise refusal(error) from error
    exchange = server_exchange(secret, tls.fingerprint if tls else b"")
    await authenticate_async(reader, writer, exchange)


async def call_async(
    host: str, port: int, secret: bytes, tls: Tls | None, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, secure and authenticate; `limit` bounds the reader's buffer, in bytes.

    Raises AuthenticationError, or OSError if nobody listens or answers in time.
    """
    context = tls.client if tls else None
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port, limit=limit, ssl=context)
    except ssl.SSLError as error:
        raise refusal(error) from error
    except TimeoutError as error:
        raise TimeoutError(f"{host}:{port} is silent for {HANDSHAKE_TIMEOUT_S:.0f} s") from error
    certificate = fingerprint(writer.get_extra_info("ssl_object")) if tls else b""
    exchange = client_exchange(secret, certificate)
    try:
        await authenticate_async(reader, writer, exchange, _PERHAPS_SECRET if tls else _PERHAPS_TLS)
    except BaseException:
        writer.close()
        raise
    return reader, writer


def authenticate(sock: socket.socket, exchange: Exchange, hint: str = "") -> None:
    """Drive an exchange over a socket; sets its timeout.

    All of it takes at most `HANDSHAKE_TIMEOUT_S`, however slowly the peer dribbles. If the peer
    breaks off, `hint` ends the message of the AuthenticationError.
    """
    deadline_s = time.monotonic() + HANDSHAKE_TIMEOUT_S
    try:
        step = next(exchange)
        while True:
            if isinstance(step, int):
                step = exchange.send(_receive(sock, step, deadline_s))
            else:
                sock.sendall(step)
                step = next(exchange)
    except StopIteration:
        return
    except (EOFError, OSError) as error:
        raise _broke_off(error, hint) from error


async def authenticate_async(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    exchange: Exchange,
    hint: str = "",
) -> None:
    """Drive an exchange over asyncio streams."""
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            step = next(exchange)
            while True:
                if isinstance(step, int):
                    step = exchange.send(await reader.readexactly(step))
                else:
                    writer.write(step)
                    step = next(exchange)
    except StopIteration:
        return
    except (EOFError, OSError, TimeoutError) as error:
        raise _broke_off(error, hint) from error


def _authenticated(sock: socket.socket, exchange: Exchange, hint: str = "") -> socket.socket:
    try:
        authenticate(sock, exchange, hint)
    except BaseException:
        sock.close()
        raise
    return sock


def _broke_off(error: Exception, hint: str) -> AuthenticationError:
    if isinstance(error, ssl.SSLError):
        return refusal(error)  # TLS 1.3: a client learns here that its certificate was refused
    match error:
        case EOFError():
            what = "closed the connection"
        case TimeoutError():
            what = f"was silent for {HANDSHAKE_TIMEOUT_S:.0f} s"
        case _:
            what = f"broke off: {error}"
    return AuthenticationError(f"instead of authenticating itself the peer {what}{hint}")


def _proof(secret: bytes, side: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, b"twinckpt 1 " + side + nonces, "sha256")


def _receive(sock: socket.socket, num_bytes: int, deadline_s: float) -> bytes:
    received = b""
    while len(received) < num_bytes:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        sock.settimeout(left_s)
        part = sock.recv(num_bytes - len(received))
        if not part:
            raise EOFError
        received += part
    return received
