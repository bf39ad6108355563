"""`twinckpt inspect`: what is in a drained checkpoint: tensors, types, shapes, bytes."""

import argparse

from twinckpt.cli import CommandError, drained


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser("inspect", help="list what is in a drained checkpoint")
    drained.add_arguments(parser)
    parser.add_argument("--rank", type=int, default=0, help="whose shard (default 0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List one rank's shard; raises CommandError, of status 1 if it is damaged or missing."""
    from twinckpt.checkpointer.assemble import read_shard
    from twinckpt.errors import DamagedCopyError
    from twinckpt.memory.drained import check_length, drained_steps

    step = drained.chosen_step(args)
    try:
        shard = read_shard(args.directory, step, args.rank)
        check_length(args.directory, shard.seal)
    except DamagedCopyError as error:
        raise CommandError(str(error), status=1) from error
    seal = shard.seal
    others = ", ".join(map(str, drained_steps(args.directory)))
    print(f"step {step} (complete: {others}), rank {args.rank} of {seal.world_size}, "
          f"{seal.size_bytes} bytes")  # fmt: skip
    for name, region in sorted(shard.regions.items()):
        dtype, shape = str(region.dtype).removeprefix("torch."), list(region.shape)
        print(f"  {name:60} {dtype:10} {shape!s:20} {region.end - region.start:>14,}")
    total = sum(region.end - region.start for region in shard.regions.values())
    print(f"{len(shard.regions)} tensors, {total:,} bytes")
    return 0
