"""One rank of `peers`: the alternatives to this library, on the same state and clocks.

The first generation measures saving, all rivals in turn. Its ranks are killed, so that the next
generation restores our checkpoint; there every other rival saves once, untimed, and restores.
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from twinckpt.checkpointer import Checkpointer
from twinckpt.experiments.ranks.busy_step import BusyStep
from twinckpt.experiments.ranks.measuring import (
    KILL_TIMEOUT_S,
    STEPS_AFTER_A_CONFLICT,
    clocked,
    meet,
    open_log,
    settle,
)
from twinckpt.experiments.ranks.rank import CPU, Rank
from twinckpt.experiments.ranks.rival_makers import RANK_ONLY, makers
from twinckpt.experiments.ranks.rivals import Rival, Twinckpt
from twinckpt.results.jsonl import JsonLines

BLOCK_STEPS = 2


class Saving:
    """Measures stall and time until safe, blocking and beside a waiting host; and busy steps."""

    def __init__(self, rivals: Mapping[str, Rival], log: JsonLines) -> None:
        self._rivals = {name: rival for name, rival in rivals.items() if rival.saves}
        self._log = log
        self._step = 0
        self._took_s: dict[str, float] = {}  # the last blocking save, by rival
        self._busy_step = BusyStep(CPU)

    def round(self, repeat: int) -> None:
        """Measure every rival once, in turn."""
        for name, rival in self._rivals.items():
            self._blocking(repeat, name, rival)
        for name, rival in self._rivals.items():
            self._beside_waiting_host(repeat, name, rival)
        if repeat <= 1:
            self._busy_step.calibrate(median(self._took_s.values()))
        self._block(repeat, "none", None)
        for name, rival in self._rivals.items():
            self._block(repeat, name, rival)
        self._block(repeat, "none_again", None)

    def _blocking(self, repeat: int, name: str, rival: Rival) -> None:
        settle()
        started_s = time.monotonic()
        self._save(rival)
        rival.fence()
        stalled_s = time.monotonic()
        rival.finish()
        done_s = time.monotonic() - started_s
        self._add(repeat, name, "stall_s", stalled_s - started_s)
        if name not in RANK_ONLY:
            self._add(repeat, name, "done_s", done_s)
        self._took_s[name] = done_s

    def _beside_waiting_host(self, repeat: int, name: str, rival: Rival) -> None:
        """Measure the stall if the host waits twice as long as this rival's checkpoint takes."""
        settle()
        started_s = time.monotonic()
        self._save(rival)
        stall_s = time.monotonic() - started_s
        time.sleep(2 * self._took_s[name])
        resumed_s = time.monotonic()
        rival.fence()
        stall_s += time.monotonic() - resumed_s
        rival.finish()
        self._add(repeat, name, "overlapped_stall_s", stall_s)

    def _block(self, repeat: int, name: str, rival: Rival | None) -> None:
        """Time steps that keep every core busy, with a checkpoint in each if a rival is given."""
        settle()
        started_s = time.monotonic()
        for _ in range(BLOCK_STEPS):
            if rival is not None:
                self._save(rival)
            self._busy_step.run()
            if rival is not None:
                rival.fence()
        if rival is not None:
            rival.finish()
        meet()
        self._add(repeat, name, "step_s", (time.monotonic() - started_s) / BLOCK_STEPS)

    def _save(self, rival: Rival) -> None:
        self._step += 1
        rival.save(self._step)

    def _add(self, repeat: int, method: str, metric: str, value: float) -> None:
        self._log.write("sample", repeat=repeat, method=method, metric=metric, value=value)


def measure_restoring(rank: Rank, rivals: Mapping[str, Rival], log: JsonLines, rounds: int) -> None:
    """Time restoring: each rank in turn loses everything, and its restored bytes are compared."""
    for name, rival in rivals.items():
        if not isinstance(rival, Twinckpt):
            rival.save(1)
            rival.fence()
            rank.overwrite()  # a change after the fence must not show in the checkpoint
            rival.finish()
            rank.copy_in()
        log.write("ready", method=name)
    for repeat in range(rounds):
        loser = repeat % dist.get_world_size()
        for name, rival in rivals.items():
            if dist.get_rank() == loser:
                rank.overwrite()
            took_s, _ = clocked(partial(rival.restore, loser))
            meet()  # else ranks with nothing to restore would compare on the loser's cores
            if not rank.is_intact():
                raise RuntimeError(f"{name}: the restored state differs from the saved one")
            if dist.get_rank() == loser:
                log.write("sample", repeat=repeat, method=name, metric="restore_s", value=took_s)


def start_rivals(
    made: Mapping[str, Callable[[], Rival]], ours: Twinckpt, log: JsonLines
) -> dict[str, Rival]:
    """Make every rival and let it save once; return those that work on every rank."""
    rivals: dict[str, Rival] = {"twinckpt": ours}

    def works_everywhere(name: str, action: Callable[[], None]) -> bool:
        """Act, log a failure, and return whether no rank has failed; collective."""
        reason = ""
        try:
            action()
        except Exception as error:  # whatever a rival raises is why it is left out
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.write("failed", method=name, reason=reason)
        failed = torch.tensor(int(bool(reason)))
        dist.all_reduce(failed)
        return not failed.item()

    for name, make in made.items():
        started: list[Rival] = []
        if works_everywhere(name, partial(_start, make, started)):
            rival = started[0]
            if works_everywhere(name, partial(_save_once, rival)):
                rivals[name] = rival
    return rivals


def _start(make: Callable[[], Rival], started: list[Rival]) -> None:
    started.append(make())


def _save_once(rival: Rival) -> None:
    if rival.saves:
        rival.save(1)
        rival.fence()
    rival.finish()


def main() -> None:
    """`peers SIZE_MIB NUM_TENSORS ROUNDS DISK MEMORY`; the last two are directories."""
    size_mib, num_tensors, rounds = map(int, sys.argv[1:4])
    disk, memory = map(Path, sys.argv[4:6])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    log = open_log()
    rank = Rank(size_mib, num_tensors)
    with Checkpointer(rank.state) as checkpointer:
        restored = checkpointer.restore()
        if restored is None:
            checkpointer.save(0, block=True)
        made = makers(rank, disk, memory)
        if restored is not None:
            made = {name: make for name, make in made.items() if name not in RANK_ONLY}
        rivals = start_rivals(made, Twinckpt(checkpointer), log)
        if restored is None:
            saving = Saving(rivals, log)
            for repeat in range(rounds):
                saving.round(repeat)
                meet()
                # Decide a step that one rank has skipped, before the next round.
                saving._step += STEPS_AFTER_A_CONFLICT
                checkpointer.save(saving._step, block=True)
            log.write("saved", bytes=rank.num_bytes)
            time.sleep(KILL_TIMEOUT_S)  # to be killed
            raise RuntimeError("nobody killed this rank")
        measure_restoring(rank, rivals, log, rounds)
        for rival in rivals.values():
            rival.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
