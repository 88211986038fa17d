"""A file system of a few megabytes, which a test may fill up or make read-only."""

from __future__ import annotations

import subprocess
from pathlib import Path

SMALL_BYTES = 16 * 1024 * 1024


def mount(folder: Path) -> str:
    """Put it there; gives why that cannot be done, or nothing."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "synckit-test", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def remount(folder: Path, how: str) -> None:
    """Make it read-only ("ro") or not ("rw")."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def unmount(folder: Path) -> None:
    """Take it away, and all that is on it, also while somebody has a file open there."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
