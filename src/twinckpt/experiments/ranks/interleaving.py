"""One rank of `interleaving`: checkpoints in the idle spans of a training's emulated link.

The training is data-parallel; DDP reduces its gradients over the link bucket by bucket, as they
become ready. After the idle spans are profiled, iterations of all schemes alternate.
"""

import json
import os
import threading
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
import xxhash

from twinckpt.core.idle_spans import IdleSpanProfiler
from twinckpt.core.interleaving import Buffer, Checkpoint, Chunk, Link, Schedule, make_schedule
from twinckpt.experiments.ranks.chunk_ring import ChunkRing
from twinckpt.experiments.ranks.emulated_link import Busy, EmulatedLink
from twinckpt.experiments.ranks.measuring import meet, start
from twinckpt.experiments.sections import InterleavingSection
from twinckpt.training.setup import Training

SETTINGS_VARIABLE = "TWINCKPT_INTERLEAVING"
# The schemes by their names in the samples, and in `twinckpt.core.interleaving`.
SCHEMES = {
    "none": "none",
    "blocking": "blocking",
    "naive": "naive",
    "no_pipeline": "no_pipeline",
    "full_schedule": "gemini",
}
WARMUP_ITERATIONS = 3


class LinkedTraining:
    """A training whose gradients travel over an emulated link, beside chunks of checkpoints."""

    def __init__(self, training: Training, section: InterleavingSection) -> None:
        self.training = training
        self._world_size = dist.get_world_size()
        self._group = dist.new_group(backend="gloo")
        self.physics = Link(
            section.link_latency_s, section.link_bytes_per_s, section.copy_bytes_per_s
        )
        self._link = EmulatedLink(self.physics)
        self._sent = b""
        num_bytes = sum(tensor.nbytes for tensor in self._state())
        size_bytes = -(-num_bytes // self._world_size)
        self.checkpoint = Checkpoint(size_bytes, section.num_replicas - 1)
        self._ring = ChunkRing(self.checkpoint, section.copy_bytes_per_s)
        self._span_begins = threading.Condition()
        self._num_spans_begun = 0
        self._gradients_ready_s = 0.0
        self.training.model.register_comm_hook(None, self._reduce)  # type: ignore[operator]

    def _state(self) -> list[torch.Tensor]:
        """Return parameters and moments, which are the same on all ranks."""
        tensors = [parameter.detach() for parameter in self.training.module.parameters()]
        for state in self.training.optimizer.state.values():
            tensors += [value for value in state.values() if torch.is_tensor(value)]
        return tensors

    def _shard(self) -> bytes:
        """Return a copy of this rank's part of all state, as if the state were sharded."""
        flat = torch.cat([tensor.reshape(-1).view(torch.uint8).cpu() for tensor in self._state()])
        size_bytes = self.checkpoint.size_bytes
        start = dist.get_rank() * size_bytes
        part = flat[start : start + size_bytes].numpy().tobytes()
        return part.ljust(size_bytes, b"\0")  # the last rank's part may be shorter

    def iterate(self, schedule: Schedule, num_sub_buffers: int) -> tuple[float, float, list[Busy]]:
        """Train one iteration and send a checkpoint by a schedule.

        Returns when the iteration began and how long it took, in seconds, and the busy intervals.
        The local copy is made before the iteration, which ends when the optimizer is done and all
        chunks are in the peers' memory.
        """
        self._sent = self._shard()
        shard = memoryview(self._sent)
        self._num_spans_begun = 0
        meet(self.training.device)
        started_s = time.monotonic()
        spans = [[c for c in schedule.chunks if c.span == i] for i in range(len(schedule.spans_s))]
        if schedule.strategy == "blocking":
            self._send(spans[0], shard, num_sub_buffers)
            spans = []
        computes_s = time.monotonic()
        self._begin_span()
        sender = threading.Thread(target=self._send_in_spans, args=(spans, shard, num_sub_buffers))
        sender.start()
        self.training.step()
        stepped_s = time.monotonic()
        sender.join()
        for peer in self._ring.senders:
            peer.wait_until_copied()
        ended_s = time.monotonic()
        busy = self._link.take_busy()
        reduced_s = max(b.end_s for b in busy if b.what == "training")
        busy.append(Busy("compute", computes_s, self._gradients_ready_s))
        busy.append(Busy("compute", max(reduced_s, self._gradients_ready_s), stepped_s))
        return started_s, ended_s - started_s, busy

    def received_intact(self) -> bool:
        """Return whether the copies received here are what the peers sent; collective."""
        digests = [""] * self._world_size
        dist.all_gather_object(digests, xxhash.xxh3_128_hexdigest(self._sent))
        return all(
            xxhash.xxh3_128_hexdigest(receiver.memory) == digests[source]
            for source, receiver in self._ring.receivers.items()
        )

    def _reduce(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Reduce a bucket over the link: DDP calls this hook when its gradients are ready."""
        device = self.training.device
        gradients = bucket.buffer().cpu()
        reduced: torch.futures.Future[torch.Tensor] = torch.futures.Future(
            devices=[device] if device.type == "cuda" else []
        )
        self._gradients_ready_s = time.monotonic()

        def transfer() -> None:
            dist.all_reduce(gradients, group=self._group)

        def done() -> None:
            self._begin_span()
            reduced.set_result((gradients / self._world_size).to(device))

        # A ring all-reduce sends this share of the bucket from every machine.
        share = 2 * (self._world_size - 1) / self._world_size
        self._link.submit("training", int(share * gradients.nbytes), transfer, done)
        return reduced

    def _begin_span(self) -> None:
        with self._span_begins:
            self._num_spans_begun += 1
            self._span_begins.notify_all()

    def _send_in_spans(
        self, spans: Sequence[Sequence[Chunk]], shard: memoryview, num_sub_buffers: int
    ) -> None:
        for index, chunks in enumerate(spans):
            with self._span_begins:
                while self._num_spans_begun <= index:
                    self._span_begins.wait()
            self._send(chunks, shard, num_sub_buffers)

    def _send(self, chunks: Sequence[Chunk], shard: memoryview, num_sub_buffers: int) -> None:
        """Send chunks one after the other, each as soon as a sub-buffer is free for it."""
        for chunk in chunks:
            peer = self._ring.senders[chunk.copy]
            peer.wait_for_buffer(num_sub_buffers)
            send = partial(peer.send, shard, chunk.offset_bytes, chunk.size_bytes)
            self._link.submit("checkpoint", chunk.size_bytes, send).result()


def idle_spans(started_s: float, took_s: float, busy: Sequence[Busy]) -> list[float]:
    """Return the link's idle spans in an iteration without checkpoint, in seconds."""
    training = [interval for interval in busy if interval.what == "training"]
    begins_s = [started_s, *(interval.end_s for interval in training)]
    ends_s = [*(interval.start_s for interval in training), started_s + took_s]
    return [max(0.0, end - begin) for begin, end in zip(begins_s, ends_s, strict=True)]


def main() -> None:
    """Profile, then measure every scheme in turn, `iterations` times."""
    training, log = start()
    section = InterleavingSection(**json.loads(os.environ[SETTINGS_VARIABLE]))
    training.step()  # Adam's moments exist from the first step on
    linked = LinkedTraining(training, section)
    without = make_schedule("none", [0.0], linked.checkpoint, linked.physics)
    for _ in range(WARMUP_ITERATIONS):
        linked.iterate(without, 1)
    profiler = IdleSpanProfiler(section.profile_iterations)
    while not profiler.is_complete:
        spans_s = idle_spans(*linked.iterate(without, 1))
        profiler.observe(spans_s)
        log.write("profiled", spans_s=spans_s)
    # One schedule for all ranks, made for the mean of their profiles.
    means_s: list[tuple[float, ...]] = [()] * dist.get_world_size()
    dist.all_gather_object(means_s, profiler.result().mean_s)
    agreed_s = np.mean(means_s, axis=0).tolist()
    buffer = Buffer(section.buffer_bytes, section.num_sub_buffers)
    schedules = {
        scheme: make_schedule(
            strategy, agreed_s, linked.checkpoint, linked.physics, buffer, section.utilisation
        )
        for scheme, strategy in SCHEMES.items()
    }
    for scheme, schedule in schedules.items():
        log.write(
            "scheduled",
            scheme=scheme,
            lengthening_s=schedule.lengthening_s,
            buffer_bytes=schedule.buffer_bytes,
            num_chunks=len(schedule.chunks),
            shard_bytes=linked.checkpoint.size_bytes,
        )
    for repeat in range(-1, section.iterations):  # the first round is warm-up
        for scheme, schedule in schedules.items():
            pipelined = scheme in ("full_schedule", "blocking")
            num_sub_buffers = section.num_sub_buffers if pipelined else 1
            started_s, took_s, busy = linked.iterate(schedule, num_sub_buffers)
            log.write(
                "iteration",
                scheme=scheme,
                repeat=repeat,
                iteration_s=took_s,
                intact=linked.received_intact() if schedule.chunks else None,
                busy=[(b.what, b.start_s - started_s, b.end_s - started_s) for b in busy],
                late_chunks=sum(b.is_late for b in busy if b.what == "checkpoint"),
            )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
