"""`twinckpt verify`: every checksum of a drained checkpoint; names the chunks that are damaged."""

import argparse

from twinckpt.cli import drained
from twinckpt.memory.drained import read_manifest, read_seal, sealed_ranks, shard_path


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser("verify", help="check every byte of a drained checkpoint")
    drained.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check all shards of one step; 0 if all are intact, 1 if not."""
    from twinckpt.errors import DamagedCopyError

    step = drained.chosen_step(args)
    manifest = read_manifest(args.directory, step)
    assert manifest is not None  # or the step would not be complete
    world_size = manifest.world_size
    ranks = [rank for rank in sealed_ranks(args.directory, step) if rank < world_size]
    num_damaged = world_size - len(ranks)
    if num_damaged:  # a damaged manifest may name any number
        first = next((rank for rank, there in enumerate(ranks) if rank != there), len(ranks))
        print(f"the manifest names {world_size} ranks, and {num_damaged} of them have no seal, "
              f"the first is rank {first}")  # fmt: skip
    for rank in ranks:
        seal = read_seal(args.directory, step, rank)
        path = shard_path(args.directory, step, rank)
        if seal is None or not path.is_file():
            print(f"rank {rank}: its file is missing, or its seal is damaged")
            num_damaged += 1
            continue
        if not manifest.covers(seal):
            print(f"rank {rank}: the shard is of another checkpoint")
            num_damaged += 1
            continue
        content = memoryview(path.read_bytes())
        found = 0
        if len(content) != seal.size_bytes:
            print(f"rank {rank}: {len(content)} bytes, {seal.size_bytes} were sealed")
            found += 1
        for index in range(seal.num_chunks):
            try:
                seal.verify_chunk(content, index)
            except DamagedCopyError as error:
                print(f"rank {rank}: {error}")
                found += 1
        num_damaged += bool(found)
        if not found:
            print(f"rank {rank}: {seal.size_bytes} bytes, {seal.num_chunks} chunks intact")
    print(f"step {step}: {world_size - num_damaged} of {world_size} shards intact")
    return int(num_damaged > 0)
