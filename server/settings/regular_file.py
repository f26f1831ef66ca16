"""Files that an operator names, read whole: only regular ones, and none larger than such a file can be."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_TEXT = 4 << 20  # settings, chat templates
MAX_JSON = 256 << 20  # the largest tokenizers have tens of megabytes


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The file's bytes. Raises OSError, also where it is too large, or a device or a pipe, which might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe waits for its writer
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if found.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes >> 20} MiB", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        os.close(descriptor)
