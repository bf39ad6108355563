"""Prometheus metrics of a job, served by its root agent over HTTP where `metrics_port` is set."""

import asyncio
import contextlib
from collections.abc import Callable

from twinckpt.agents.status import JobStatus
from twinckpt.net.strangers import Strangers

_REQUEST_TIMEOUT_S = 5.0
_MAX_REQUEST_BYTES = 8192


def as_text(status: JobStatus) -> str:
    """Return the metrics in Prometheus' text format."""
    in_place = sum(machine.index is not None for machine in status.machines)
    metrics: list[tuple[str, str, str, float | None]] = [
        ("up_to_date", "gauge", "1 if checkpoints are taken and redundant", status.is_healthy),
        ("generation", "counter", "incarnations of the cluster", status.generation),
        ("machines", "gauge", "machines in the running generation", in_place),
        ("waiting_machines", "gauge", "machines that wait", len(status.machines) - in_place),
        ("ranks", "gauge", "ranks that take checkpoints", status.num_ranks),
        ("committed_step", "gauge", "newest step that all ranks can resume", status.committed_step),
        ("committed_ago_seconds", "gauge", "time since the last commit", status.committed_ago_s),
        ("drained_step", "gauge", "newest step in persistent storage", status.drained_step),
        ("commits_total", "counter", "steps committed", status.num_commits),
        ("saves_total", "counter", "calls of save, all ranks", status.num_saves),
        ("skipped_saves_total", "counter", "saves without a free slot", status.num_skipped),
        ("failed_saves_total", "counter", "saves that went wrong", status.num_failed),
        ("failures_total", "counter", "ranks and machines lost", status.num_failures),
    ]
    lines = []
    for name, kind, meaning, value in metrics:
        if value is not None:
            lines.append(f"# HELP twinckpt_{name} {meaning}")
            lines.append(f"# TYPE twinckpt_{name} {kind}")
            lines.append(f"twinckpt_{name} {float(value):.15g}")
    return "\n".join(lines) + "\n"


async def serve_metrics(status: Callable[[], JobStatus], host: str, port: int) -> asyncio.Server:
    """Answer `GET /metrics`; raises OSError if the port cannot be had."""

    strangers = Strangers()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with (
            strangers.entered(writer.transport.abort),
            contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError),
        ):
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                request = await reader.readuntil(b"\r\n\r\n")
            found = request.startswith(b"GET /metrics ")
            body = as_text(status()).encode() if found else b"see /metrics\n"
            head = (
                f"HTTP/1.1 {'200 OK' if found else '404 Not Found'}\r\n"
                "Content-Type: text/plain; version=0.0.4\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, host, port, limit=_MAX_REQUEST_BYTES)
