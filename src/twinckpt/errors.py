"""The library's own exceptions. Each message says what happened and what to do."""


class TwinckptError(Exception):
    """Base of every error that twinckpt raises on purpose."""


class ConfigurationError(TwinckptError, ValueError):
    """A setting is impossible; the message names the value and the limit."""


class UnsupportedStateError(TwinckptError, TypeError):
    """The state holds something that cannot be carried safely; the message names it."""


class OutOfMemoryError(TwinckptError, MemoryError):
    """The slots do not fit into memory; the message says what is needed and what is available."""


class DamagedCopyError(TwinckptError):
    """Bytes of a checkpoint do not match their checksums."""


class AuthenticationError(TwinckptError):
    """A peer does not hold the job's secret."""


class AgentUnavailableError(TwinckptError):
    """The worker agent or the root agent cannot be reached."""


class RestoreError(TwinckptError):
    """A checkpoint exists but does not fit the state it should be restored into."""
