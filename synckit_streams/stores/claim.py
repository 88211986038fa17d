"""Who owns a store file, and whether the last owner left it clean.

Two questions about a file, both answered beside it. *Is it in use?* A lock file that the kernel frees when its owner
dies, and a table of what this process has claimed, so that two nodes with one file fail when they are made and not
when the second one writes. *Did nobody touch it since we closed it?* A token that a clean close writes into the store
and into a file beside it, bound to machine, inode and change time. A database that was copied, restored or written by
anybody else fails that test, and its node then numbers its events under a new incarnation.

The change time (`st_ctime`) is what makes it hold against `cp -a` of store *and* token file: no tool can set it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path

from synckit_streams.errors import StoreBusy, StoreError, StoreInUse

_claims: weakref.WeakValueDictionary[str, FileClaim] = weakref.WeakValueDictionary()
_claims_lock = threading.Lock()


def _machine() -> str:
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        with suppress(OSError):
            if name := path.read_text().strip():
                return name
    return os.uname().nodename


class FileClaim:
    """One node's claim on one store file. Claimed when made; locked between `lock` and `release`.

    Raises:
        StoreInUse: another node of this process, or another process, has the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock_path = self.path.with_name(self.path.name + "-lock")
        self._token_path = self.path.with_name(self.path.name + "-clean")
        self._fd = -1
        with _claims_lock:
            if str(self.path) in _claims:
                raise StoreInUse(f"{self.path} is the store of another node in this process")
            if self._lock_path.exists():
                self._take()
                self._free()
            _claims[str(self.path)] = self

    def _take(self) -> None:
        try:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(
                f"cannot make {self._lock_path}: {error.strerror}", hint="the store's folder must exist and be writable"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip()
            os.close(fd)
            raise StoreInUse(f"{self.path} is in use by another process{f' ({holder})' if holder else ''}") from None
        except OSError as error:
            os.close(fd)
            raise StoreBusy(f"cannot lock {self._lock_path}: {error.strerror}") from error
        self._fd = fd

    def _free(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def lock(self, node: str) -> None:
        """Take the file.

        Raises:
            StoreInUse: another process has it.
            StoreError: its folder cannot be written.
        """
        with _claims_lock:
            if _claims.setdefault(str(self.path), self) is not self:
                raise StoreInUse(f"{self.path} is the store of another node in this process")
        if self._fd < 0:
            self._take()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"node {node}, process {os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the file back. May be called twice."""
        self._free()
        with _claims_lock:
            if _claims.get(str(self.path)) is self:
                del _claims[str(self.path)]

    def _stamp(self) -> dict[str, str | int]:
        stat = self.path.stat()
        return {"machine": _machine(), "device": stat.st_dev, "inode": stat.st_ino, "changed_ns": stat.st_ctime_ns}

    def consume_token(self) -> str:
        """The token of the last clean close, if nobody has touched the file since; "" otherwise. It is gone then."""
        try:
            found = json.loads(self._token_path.read_bytes())
        except (OSError, ValueError):
            found = None
        with suppress(FileNotFoundError):
            self._token_path.unlink()
            self._sync_folder()
        if not isinstance(found, dict) or not self.path.exists():
            return ""
        token = found.pop("token", "")
        return token if isinstance(token, str) and found == self._stamp() else ""

    def leave_token(self, token: str) -> None:
        """After the store was closed, with the token in it: say that it was left clean."""
        raw = json.dumps({**self._stamp(), "token": token}).encode()
        fd = os.open(self._token_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, raw)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._sync_folder()

    def _sync_folder(self) -> None:
        fd = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
