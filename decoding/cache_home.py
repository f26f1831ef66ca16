"""Where this user's caches lie. Only a cache: a start must not fail for want of a home."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def cache_home() -> Path:
    """XDG_CACHE_HOME, else ~/.cache, else, for a user who has no home that can be written, a folder in /tmp."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    with contextlib.suppress(RuntimeError):  # no HOME, and no entry in the list of users
        home = Path.home() / ".cache"
        if (home / "polydecode").is_dir() or _can_be_made(home):
            return home
    return _in_tmp()


def cache_folder(name: str) -> Path:
    """Ours of that name."""
    return cache_home() / "polydecode" / name


def _can_be_made(folder: Path) -> bool:
    nearest = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
    return os.access(nearest, os.W_OK)


def _in_tmp() -> Path:
    """Everybody may write to /tmp: a folder of that name that is not ours alone is not used."""
    folder = Path(tempfile.gettempdir()) / f"polydecode-cache-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not folder.is_symlink() and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="polydecode-cache-"))
