"""Messages as bytes: msgpack of (name, fields) in frames with a bounded length.

Only the types that the receiver names can come out of it; anything else is a ProtocolError.
"""

import asyncio
import struct
from typing import Any, get_args

import msgspec

from twinckpt.core import messages as m
from twinckpt.errors import DamagedCopyError, TwinckptError

MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct(">I")


class ProtocolError(TwinckptError):
    """A peer sent bytes that are no message we expect."""


_NAMED = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


class Codec:
    """Encodes and decodes the message types of one direction of one link, in any thread.

    Decoders are made once: msgspec may crash where two threads meet a type for the first time.
    """

    def __init__(self, types: Any) -> None:
        self._decoders = {t.__name__: msgspec.msgpack.Decoder(t) for t in get_args(types)}

    def encode(self, message: Any) -> bytes:
        """Return the bytes of a message, without the frame."""
        return msgspec.msgpack.encode([type(message).__name__, message])

    def decode(self, payload: bytes | memoryview) -> Any:
        """Return the message in `payload`; raises ProtocolError for anything else."""
        try:
            name, body = _NAMED.decode(payload)
            return self._decoders[name].decode(body)
        except (KeyError, ValueError, RecursionError, DamagedCopyError) as error:
            raise ProtocolError(f"not a message of this link: {error}") from error


TO_ROOT = Codec(m.ToRoot)
TO_WORKER = Codec(m.ToWorker)


def frame(payload: bytes) -> bytes:
    """Return the payload with its length in front."""
    return _LENGTH.pack(len(payload)) + payload


def frame_length(prefix: bytes, max_bytes: int = MAX_FRAME_BYTES) -> int:
    """Return the length that a frame's first four bytes announce, if it is allowed."""
    (length,) = _LENGTH.unpack(prefix)
    if length > max_bytes:
        raise ProtocolError(f"a frame of {length} bytes, at most {max_bytes} are allowed")
    return int(length)


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """Return the next payload; raises IncompleteReadError at the end of the connection."""
    length = frame_length(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)
