"""Orphans that a first process inherits are reaped, and nobody else's children."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import asyncio, ctypes, subprocess, sys
from server.worker import orphans

ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans come to us as they come to a first process

async def main():
    reaping = asyncio.create_task(orphans.reap_orphans(0.05))
    own = await asyncio.create_subprocess_exec("sh", "-c", "exit 7")
    late = subprocess.Popen(["sh", "-c", "read line; exit 3"], stdin=subprocess.PIPE)
    subprocess.run(["sh", "-c", "sh -c 'exit 5' & exit 0"], check=True)
    async with asyncio.timeout(20):
        while not orphans._zombies():
            await asyncio.sleep(0.001)
        while orphans._zombies():
            await asyncio.sleep(0.01)
    late.communicate(b"now\\n")
    print(await own.wait(), late.wait())
    reaping.cancel()

asyncio.run(main())
"""


def test_an_orphan_is_reaped_and_our_own_children_keep_their_exit_status() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("7 3\n", "")


def test_whether_orphans_come_to_us_is_told_by_our_number() -> None:
    code = "from server.worker.orphans import inherits_orphans; print(inherits_orphans())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
