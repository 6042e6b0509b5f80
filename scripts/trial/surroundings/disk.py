"""A disk of a few pages that can be filled, and taken away to write on."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096  # bytes, by which memory is dealt out to a file
ROOMY = 64 * 2**20
_CAPABILITY_VERSION = 0x20080522
_PERMISSIONS_DO_NOT_BIND = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


class Disk:
    """A file system in memory.

    Args:
        place: An empty directory.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def mount(self) -> bool:
        """Put it there; False where that is not permitted."""
        self.place.mkdir(parents=True, exist_ok=True)
        mounted = self._call("mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs")
        if mounted:
            (self.place / "filler").write_bytes(b"x")  # for no size at all would be no limit
        return mounted

    def leave(self, pages: int) -> None:
        """Leave room for so many pages beside what is there."""
        figures = os.statvfs(self.place)
        used = (figures.f_blocks - figures.f_bfree) * figures.f_frsize
        self._call("mount", "-o", f"remount,size={used + pages * PAGE}")

    def make_room(self) -> None:
        """Let it be written on again."""
        self._call("mount", "-o", f"remount,rw,size={ROOMY}")

    def make_read_only(self) -> None:
        """Let nothing be written on it, whoever asks."""
        self._call("mount", "-o", "remount,ro")

    def unmount(self) -> None:
        """Take it away, with all that is on it."""
        self._call("umount", "-l")

    def _call(self, *words: str) -> bool:
        return subprocess.run([*words, str(self.place)], capture_output=True, check=False).returncode == 0


def may_mount(place: Path) -> bool:
    """Whether this process may mount anything."""
    disk = Disk(place)
    mounted = disk.mount()
    if mounted:
        disk.unmount()
    return mounted


@contextmanager
def permissions_bind() -> Iterator[None]:
    """Have the permissions of files hold for this process and its children, though it may be root's."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    libc = ctypes.CDLL(None)
    libc.capget(header, sets)
    before = sets[0]
    sets[0] = before & ~_PERMISSIONS_DO_NOT_BIND
    libc.capset(header, sets)
    try:
        yield
    finally:
        sets[0] = before
        libc.capset(header, sets)
