"""Writers that are killed: run by test_logfile in a process of its own.

Forks ``count`` children one after the other, each of which appends records until it is killed at a
random moment, while another child appends from the start to the end. A child writes the seed of a
record to its pipe when ``append`` has returned. Prints ``{"killed": [[seeds], ...], "steady":
[seeds]}`` of those acknowledged.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

from lutcc.tuning.logfile import LogFile
from tests.tuning.samples import record


def child(path: str, first: int) -> tuple[int, int]:
    """Start a writer whose seeds count from ``first``; returns its process and pipe."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    log = LogFile(path)
    seed = first
    while True:
        log.append(record(0.9, seed=seed))
        os.write(writer, seed.to_bytes(8, "little"))
        seed += 1


def stop(process: int, reader: int) -> list[int]:
    """Kill a writer and return the seeds that it acknowledged."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    data = b""
    while part := os.read(reader, 1 << 16):
        data += part
    os.close(reader)
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data) // 8 * 8, 8)]


def main(path: str, count: int) -> None:
    log = LogFile(path)
    log.append(record(seed=0))  # compiles the validator before the forks
    moments = random.Random(0)
    steady = child(path, 10**9)
    killed = []
    for number in range(1, count + 1):
        writer = child(path, number * 10**6)
        time.sleep(moments.uniform(0.002, 0.05))
        killed.append(stop(*writer))
    json.dump({"killed": killed, "steady": stop(*steady)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
