"""Mutual proof that both ends of a connection hold the job's secret.

It comes before any other byte is read, has fixed lengths, and the caller proves first:

    server → client   nonce
    client → server   nonce, HMAC(secret, "client", both nonces)
    server → client   HMAC(secret, "server", both nonces)

The exchange itself does no I/O; the drivers below run it on a socket or on asyncio streams.
It authenticates the connection, it does not encrypt it.
"""

import asyncio
import hmac
import secrets
import socket
import time
from collections.abc import Generator

from twinckpt.errors import AuthenticationError

NONCE_BYTES = 32
PROOF_BYTES = 32
HANDSHAKE_TIMEOUT_S = 5.0

# Yields bytes to send, or a number of bytes to receive; is sent what was received.
Exchange = Generator[bytes | int, bytes, None]


def server_exchange(secret: bytes) -> Exchange:
    """Run the server's side; raises AuthenticationError for a caller without the secret."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    yield nonce
    answer = yield NONCE_BYTES + PROOF_BYTES
    both = nonce + answer[:NONCE_BYTES]
    if not hmac.compare_digest(answer[NONCE_BYTES:], _proof(secret, b"client", both)):
        raise AuthenticationError("the caller does not hold this job's secret")
    yield _proof(secret, b"server", both)


def client_exchange(secret: bytes) -> Exchange:
    """Run the client's side; raises AuthenticationError for a server without the secret."""
    server_nonce = yield NONCE_BYTES
    nonce = secrets.token_bytes(NONCE_BYTES)
    both = server_nonce + nonce
    yield nonce + _proof(secret, b"client", both)
    proof = yield PROOF_BYTES
    if not hmac.compare_digest(proof, _proof(secret, b"server", both)):
        raise AuthenticationError("the server does not hold this job's secret")


def authenticate(sock: socket.socket, exchange: Exchange) -> None:
    """Drive an exchange over a socket; sets its timeout.

    All of it takes at most `HANDSHAKE_TIMEOUT_S`, however slowly the peer dribbles.
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
        raise AuthenticationError(f"the peer broke off while authenticating: {error}") from error


async def authenticate_async(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Exchange
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
        raise AuthenticationError(f"the peer broke off while authenticating: {error}") from error


def _proof(secret: bytes, side: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, b"twinckpt 1 " + side + nonces, "sha256")


def _receive(sock: socket.socket, num_bytes: int, deadline_s: float) -> bytes:
    received = b""
    while len(received) < num_bytes:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"no proof within {HANDSHAKE_TIMEOUT_S:.0f} s")
        sock.settimeout(left_s)
        part = sock.recv(num_bytes - len(received))
        if not part:
            raise EOFError("connection closed")
        received += part
    return received
