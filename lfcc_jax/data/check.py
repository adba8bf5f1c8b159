"""Command line: reads and decodes every image of a data set, and lists those that cannot be read.

    python -m lfcc_jax.data.check PHOTOS
    python -m lfcc_jax.data.check cifar100 --split=train

The exit status is 1 if there are any.
"""

import argparse
import functools
import multiprocessing
import os
import signal
import sys
import time

from lfcc_jax.data.examples import read
from lfcc_jax.data.open import full_name, open_source
from lfcc_jax.data.source import Source
from lfcc_jax.errors import UserError

# Number of images that a worker process reads at a time.
_CHUNK = 64


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs it; on invalid input, exits with one line and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m lfcc_jax.data.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="a folder of images, a CSV file, or a data set, as in config.data.name")
    parser.add_argument("--split", default="all", help="split to read (default: all)")
    parser.add_argument("--data-dir", default="", help="directory of prepared TFDS data sets (default: TFDS's)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes")
    args = parser.parse_args(arguments)
    try:
        if args.workers < 1:
            raise UserError(f"`--workers` must be positive, got {args.workers}")
        name = full_name(args.data)
        is_files = name.startswith(("folder:", "csv:", "hf:"))
        source = open_source(name, args.split, args.data_dir, labels=False, skip_unreadable=is_files)
        problems = check(source, args.workers)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    print(f"{len(source.examples):,} images of '{args.data}', {len(problems):,} of them cannot be read")
    sys.exit(1 if problems else 0)


def check(source: Source, workers: int) -> list[str]:
    """Reads every image, with progress, and returns a line for each that cannot be read, after printing it.

    Args:
      source: The images.
      workers: Number of processes.
    """
    source = source._replace(skip_unreadable=False)
    total, problems = len(source.examples), []
    start = last = time.monotonic()
    # Threads and locks of JAX do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        chunks = range(0, total, _CHUNK)
        for i, found in enumerate(pool.imap(functools.partial(_read_chunk, source), chunks)):
            for line in found:
                print(line)
            problems += found
            now, done = time.monotonic(), min(total, (i + 1) * _CHUNK)
            if now - last > 2 and done < total:
                last, speed = now, done / (now - start)
                left = f"{(total - done) / speed:.0f} s left"
                print(f"{done:,} of {total:,} images, {speed:,.0f} per second, {left}", file=sys.stderr, flush=True)
    return problems


def _read_chunk(source: Source, start: int) -> list[str]:
    problems = []
    for index in range(start, min(start + _CHUNK, len(source.examples))):
        try:
            read(source, index)
        except UserError as error:
            problems.append(str(error))
    return problems


if __name__ == "__main__":
    main()
