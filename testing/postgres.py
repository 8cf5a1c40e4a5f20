"""A PostgreSQL server for tests and the bench, with its own folder, port and user; it leaves nothing."""

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from gateway.store.database import Database
from testing.ports import free_ports

_START_SECONDS = 60.0
# PostgreSQL refuses to run as root; Debian's package makes this user.
_USER = "postgres"


class Postgres:
    """A server. As a context manager it runs from the beginning to the end of the block."""

    def __init__(self, *, durable: bool = False) -> None:
        """Choose a folder and a port; nothing runs yet. A durable one syncs each commit to disk."""
        self.folder = Path(tempfile.mkdtemp(prefix="pushgate-postgres-"))
        self._password = secrets.token_hex(16)
        self._fsync = "on" if durable else "off"
        self._names = itertools.count(1)
        [self._port] = free_ports(1)
        self._server: subprocess.Popen[bytes] | None = None

    def database(self, *, like: str = "template1") -> str:
        """Make a database, empty or as a copy of the one at the URL `like`; return its URL."""
        name = f"test{next(self._names)}"
        template = f"--template={like.rpartition('/')[2]}"
        self._run("createdb", "--host", "127.0.0.1", "--port", str(self._port), template, name)
        return f"postgresql://pushgate:{self._password}@127.0.0.1:{self._port}/{name}"

    def __enter__(self) -> Self:
        """Make the server's files, and start it."""
        try:
            if os.getuid() == 0:
                shutil.chown(self.folder, _USER)
            password = self.folder / "password"
            password.write_text(self._password)
            password.chmod(0o644)
            data = str(self.folder / "data")
            self._run(
                "initdb",
                "--no-sync",
                "--auth=scram-sha-256",
                "--username=pushgate",
                f"--pwfile={password}",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                data,
            )
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server, and remove its files."""
        self.close()

    def start(self) -> None:
        """Start with the present data, and return once the server answers."""
        settings = {
            "port": str(self._port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": self._fsync,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # However the test run ends, be it by SIGKILL, the server ends with it.
        with_us = ["setpriv", "--pdeathsig=INT"]
        command = [
            *_as_user(),
            *with_us,
            str(_program("postgres")),
            "-D",
            str(self.folder / "data"),
            *options,
        ]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop at once, with every connection; the data stays."""
        if self._server is not None:
            # https://www.postgresql.org/docs/current/server-shutdown.html: immediate shutdown
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait()
            self._server = None

    def close(self) -> None:
        """End, and remove the files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        arguments = ["--host", "127.0.0.1", "--port", str(self._port), "--quiet"]
        return subprocess.run([_program("pg_isready"), *arguments], check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        environment = {
            "PATH": os.defpath,
            "PGPASSWORD": self._password,
            "PGUSER": "pushgate",
            "LC_ALL": "C.UTF-8",
        }
        command = [*_as_user(), str(_program(program)), *arguments]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, cwd="/")
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr}")


def end_all_connections(url: str) -> int:
    """End every connection to the database, as a switch to a standby does; return how many there were."""
    with psycopg.connect(url, autocommit=True) as server:
        return server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).rowcount


def _as_user() -> list[str]:
    if os.getuid() != 0:
        return []
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]


def _program(name: str) -> Path:
    """Return a server program, which Debian does not put on PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(debian[-1]) if debian else shutil.which(name)
    if found is None:
        raise RuntimeError(f"there is no {name}; tests/require-programs names what to install")
    return Path(found)


def url_of(database: Database) -> str:
    """Return the URL with which any client can connect."""
    return database.url.set(drivername="postgresql").render_as_string(hide_password=False)
