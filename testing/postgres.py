"""A PostgreSQL server for tests and the bench, with its own folder, port and user; it leaves nothing."""

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg

from gateway.store.database import Database
from testing.ports import free_ports
from testing.server import Server, find_program

# PostgreSQL refuses to run as root; Debian's package makes this user.
_USER = "postgres"


class Postgres(Server):
    """A PostgreSQL server. As a context manager it runs from the beginning to the end of the block."""

    NAME = "PostgreSQL"
    START_SECONDS = 60.0

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

    def start(self) -> None:
        """Start with the present data, if there is any, and return once the server answers."""
        if not (self.folder / "data").exists():
            self._initialize()
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
            _program("postgres"),
            "-D",
            str(self.folder / "data"),
            *options,
        ]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True)
        self.wait_for_start(self._server, self._answers, self.folder / "log")

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

    def _initialize(self) -> None:
        """Make the server's files."""
        if os.getuid() == 0:
            shutil.chown(self.folder, _USER)
        password = self.folder / "password"
        password.write_text(self._password)
        password.chmod(0o644)
        self._run(
            "initdb",
            "--no-sync",
            "--auth=scram-sha-256",
            "--username=pushgate",
            f"--pwfile={password}",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            str(self.folder / "data"),
        )

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
        command = [*_as_user(), _program(program), *arguments]
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


def _program(name: str) -> str:
    """Return a server program, which Debian does not put on PATH."""
    return find_program(name, f"postgresql/*/bin/{name}")


def url_of(database: Database) -> str:
    """Return the URL with which any client can connect."""
    return database.url.set(drivername="postgresql").render_as_string(hide_password=False)
