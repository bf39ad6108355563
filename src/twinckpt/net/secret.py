"""The per-job secret: from the environment or a file, never from a command line.

`TWINCKPT_SECRET` holds it, or `TWINCKPT_SECRET_FILE` names a file that does. With neither,
a private file of the user is made once; machines that share the home directory then agree.
"""

import os
import secrets
from pathlib import Path

from twinckpt.errors import ConfigurationError

MIN_SECRET_BYTES = 16


def load_secret() -> bytes:
    """Return the job's secret; raises ConfigurationError if it is short or others can read it."""
    value = os.environ.get("TWINCKPT_SECRET")
    if value is not None:
        return _checked(os.fsencode(value), "TWINCKPT_SECRET")
    named = os.environ.get("TWINCKPT_SECRET_FILE")
    path = Path(named) if named else _default_path()
    try:
        if not named and not path.exists():
            _create(path)
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"{path} is open to other users: run chmod 600 {path}")
        return _checked(path.read_bytes().strip(), str(path))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the secret file {path}: {error}; set TWINCKPT_SECRET, or name a file of "
            "yours in TWINCKPT_SECRET_FILE"
        ) from error


def _default_path() -> Path:
    configuration = os.environ.get("XDG_CONFIG_HOME")
    if configuration:
        return Path(configuration) / "twinckpt" / "secret"
    home = os.path.expanduser("~")
    if home == "~":
        raise ConfigurationError("this user has no home directory: set TWINCKPT_SECRET")
    return Path(home) / ".config" / "twinckpt" / "secret"


def _create(path: Path) -> None:
    """Publish a fresh secret atomically: of several first users one wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_hex(32))
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _checked(secret: bytes, origin: str) -> bytes:
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"the secret in {origin} has {len(secret)} bytes, at least {MIN_SECRET_BYTES} are "
            "needed: make one with `openssl rand -hex 32`"
        )
    return secret
