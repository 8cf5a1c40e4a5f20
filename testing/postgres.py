"""A PostgreSQL server for tests and the bench, with its own folder, port and user; it leaves nothing."""

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg.sql import SQL, Identifier

from gateway.store.database import Database
from testing.ports import free_ports
from testing.server import Server, find_program

# PostgreSQL refuses to run as root; Debian's package makes this user.
_USER = "postgres"
_END_MILLISECONDS = 60_000


class Postgres(Server):
    """A PostgreSQL server. As a context manager it runs from the beginning to the end of the block."""

    NAME = "PostgreSQL"
    START_SECONDS = 60.0

    def __init__(self, *, durable: bool = False, primary: "Postgres | None" = None) -> None:
        """Choose a folder and a port; nothing runs yet. A durable one syncs each commit to disk.

        With a primary, it is its standby: it starts as a copy, and receives each change.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="pushgate-postgres-"))
        self._primary = primary
        self.password: str = secrets.token_hex(16) if primary is None else primary.password
        self._fsync = "on" if durable else "off"
        self._names = itertools.count(1)
        [self._port] = free_ports(1)
        self._server: subprocess.Popen[bytes] | None = None

    def database(self, *, like: str = "template1") -> str:
        """Make a database, empty or as a copy of the one at the URL `like`; return its URL."""
        name, template = f"test{next(self._names)}", like.rpartition("/")[2]
        with psycopg.connect(self.administration, autocommit=True) as server:
            create = SQL("CREATE DATABASE {} TEMPLATE {}")
            server.execute(create.format(Identifier(name), Identifier(template)))
        return f"postgresql://pushgate:{self.password}@{self.address}/{name}"

    @property
    def address(self) -> str:
        """The host and port."""
        return f"127.0.0.1:{self._port}"

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
            program_path("postgres"),
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

    def kill(self) -> None:
        """End the server and its children as a power failure does: nothing more is sent or written."""
        assert self._server is not None
        main = self._server.pid
        children = Path(f"/proc/{main}/task/{main}/children").read_text(encoding="ascii").split()
        for process in (main, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._server.wait()
        self._server = None

    def wait_for_standby(self) -> None:
        """Have each commit wait until a standby has it on disk, from the moment at which one follows."""
        with psycopg.connect(self.administration, autocommit=True) as server:
            server.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            server.execute("SELECT pg_reload_conf()")
            follows = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"
            while server.execute(follows).fetchone() is None:
                time.sleep(0.02)

    def promote(self) -> None:
        """Make a standby accept writes."""
        with psycopg.connect(self.administration, autocommit=True) as server:
            server.execute("SELECT pg_promote()")

    @property
    def administration(self) -> str:
        """The URL of the database in which nothing is stored."""
        return f"postgresql://pushgate:{self.password}@{self.address}/postgres"

    def close(self) -> None:
        """End, and remove the files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialize(self) -> None:
        """Make the server's files."""
        if os.getuid() == 0:
            shutil.chown(self.folder, _USER)
        if self._primary is not None:
            options = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync")
            data = ("--pgdata", str(self.folder / "data"))
            self._run("pg_basebackup", f"--dbname={self._primary.administration}", *data, *options)
            return
        password = self.folder / "password"
        password.write_text(self.password)
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
        return subprocess.run([program_path("pg_isready"), *arguments], check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        environment = {
            "PATH": os.defpath,
            "PGPASSWORD": self.password,
            "PGUSER": "pushgate",
            "LC_ALL": "C.UTF-8",
        }
        command = [*_as_user(), program_path(program), *arguments]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, cwd="/")
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr}")


def end_all_connections(url: str) -> int:
    """End every connection to the database, as a switch to a standby does; return how many there were.

    Wait until each has ended: a server process that has only received the signal still answers.
    """
    with psycopg.connect(url, autocommit=True) as server:
        return server.execute(
            "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            (_END_MILLISECONDS,),
        ).rowcount


def _as_user() -> list[str]:
    if os.getuid() != 0:
        return []
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]


def program_path(name: str) -> str:
    """Return a server program, which Debian does not put on PATH."""
    return find_program(name, f"postgresql/*/bin/{name}")


def url_of(database: Database) -> str:
    """Return the URL with which any client can connect."""
    return database.url.set(drivername="postgresql").render_as_string(hide_password=False)
