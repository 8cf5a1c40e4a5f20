"""A RabbitMQ node of the tests' own: own name, ports and folders, and nothing left when it ends.

It neither needs nor touches a node that runs already, and works for root and for an ordinary user. A guard,
one small shell, waits on a pipe that only this process holds open: however the test run ends, be it by
SIGKILL, the guard ends the node with its epmd and removes the folder.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testing.certificate import make_certificate
from testing.ports import free_ports
from testing.server import Server, find_program

_STOP_SECONDS = 60.0
# The protocol header of AMQP 0-9-1 (4.2.2), and the type of the frame that answers it.
_AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"
_PLUGIN = "rabbitmq_consistent_hash_exchange"
_TIMEOUTS = (
    "application:set_env(rabbit, consumer_timeout, {timeout}), "
    "application:set_env(rabbit, channel_tick_interval, {interval})"
)
_GUARD = """
cat >/dev/null
for group in $(cat "$1/groups"); do kill -s KILL -- "-$group" 2>/dev/null; done
until rm -rf -- "$1" 2>/dev/null; do sleep 0.05; done
"""


class Broker(Server):
    """A RabbitMQ node. As a context manager it runs from the beginning to the end of the block.

    `url` is the AMQP URL of a user who may do everything and `onlooker_url` of one who may only read;
    both stay the same when the node is stopped and started again, as does its data. `tls_url` is for
    clients that trust the authority of `certified`, and present its certificate.
    """

    NAME = "RabbitMQ"
    START_SECONDS = 120.0

    def __init__(self) -> None:
        """Choose names and ports. Before `start`, only the guard runs."""
        self.password = secrets.token_hex(16)
        self.port, self.tls_port, self._distribution_port, self._epmd_port = free_ports(4)
        self.url = f"amqp://pushgate:{self.password}@127.0.0.1:{self.port}/"
        self.onlooker_url = f"amqp://onlooker:{self.password}@127.0.0.1:{self.port}/"
        self.tls_url = f"amqps://pushgate:{self.password}@127.0.0.1:{self.tls_port}/"
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="pushgate-broker-"))
        self.certified = make_certificate(self.folder)
        self._note_groups()
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "guard", self.folder], stdin=subprocess.PIPE, start_new_session=True
        )
        self._write_config()

    def start(self) -> None:
        """Start the node, with the data that it has, and return once it speaks AMQP."""
        if self._epmd is None:
            # The node would start an epmd that outlives it, unless one runs already.
            self._epmd = self._run([_program("epmd"), "-port", str(self._epmd_port), "-address", "127.0.0.1"])
            self._note_groups()
            self._wait(self._epmd, self._epmd_port, hello=b"")
        self._node = self._run([_server()])
        self._note_groups()
        self._wait(self._node, self.port, hello=_AMQP_HEADER)

    def stop(self) -> None:
        """Stop the node cleanly; it keeps its data."""
        if self._node is not None:
            self._node.terminate()
            self._ended()

    def kill(self) -> None:
        """End the node at once, as the kernel would when memory is short; it keeps its data."""
        if self._node is not None:
            os.killpg(self._node.pid, signal.SIGKILL)
            self._ended()

    def close(self) -> None:
        """End everything, and leave no process and no file."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        for process in (self._guard, self._node, self._epmd):
            if process is not None:
                process.wait(_STOP_SECONDS)
        self._node = self._epmd = None

    def alarm(self, resource: str = "memory", *, on: bool) -> None:
        """Raise or clear the node's memory or disk alarm."""
        if resource == "memory":
            self._evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({'0.000001' if on else '0.6'})")
        else:
            self._evaluate(f'rabbit_disk_monitor:set_disk_free_limit("{"1000000GB" if on else "1MB"}")')

    def largest_message(self, size: int) -> None:
        """Set the message size limit of new channels; RabbitMQ 4 has 16 MiB."""
        self._evaluate(f"application:set_env(rabbit, max_message_size, {size})")

    @contextmanager
    def consumer_timeout(self, milliseconds: int) -> Iterator[None]:
        """Let channels that open meanwhile hold a message no longer than this, and check that often."""
        self._evaluate(_TIMEOUTS.format(timeout=milliseconds, interval=milliseconds // 5))
        try:
            yield
        finally:
            self._evaluate(_TIMEOUTS.format(timeout=1_800_000, interval=60_000))

    def topic_permission(self, exchange: str, *, write: str) -> None:
        """Allow the user to publish to an exchange only with routing keys that match."""
        self._evaluate(
            'rabbit_auth_backend_internal:set_topic_permissions(<<"pushgate">>, <<"/">>, '
            f'<<"{exchange}">>, <<"{write}">>, <<".*">>, <<"tests">>)'
        )

    def virtual_host_that_is_down(self, name: str) -> None:
        """Make a virtual host that is defined but not running, as after a failure: error 541."""
        self._evaluate(
            f'rabbit_vhost:add(<<"{name}">>, <<"tests">>), '
            f'rabbit_auth_backend_internal:set_permissions(<<"pushgate">>, <<"{name}">>, '
            '<<".*">>, <<".*">>, <<".*">>, <<"tests">>), '
            f'rabbit_vhost_sup_sup:delete_on_all_nodes(<<"{name}">>)'
        )

    def queue_argument(self, queue: str, name: str) -> str:
        """Return the type and value of a queue's argument as Erlang writes them, or `undefined`."""
        return self._evaluate(
            f'{{ok, Queue}} = rabbit_amqqueue:lookup({{resource, <<"/">>, queue, <<"{queue}">>}}), '
            f'rabbit_misc:table_lookup(amqqueue:get_arguments(Queue), <<"{name}">>)'
        )

    def consumers(self, queue: str) -> int:
        """Return how many consumers a queue has, with those that stand by."""
        resource = f'{{resource, <<"/">>, queue, <<"{queue}">>}}'
        consumers = f'[1 || [{{queue_name, {resource}}} | _] <- rabbit_amqqueue:consumers_all(<<"/">>)]'
        return int(self._evaluate(f"length({consumers})"))

    def plugin(self, *, on: bool) -> None:
        """Enable the plugin for consistent hashing (the default), or disable it."""
        self._write_plugins([_PLUGIN] if on else [])
        self._evaluate(f'{{ok, _, _}} = rabbit_plugins:ensure("{self.folder / "plugins"}")')

    def _evaluate(self, expressions: str) -> str:
        """Evaluate Erlang in the node; return the value as Erlang writes it.

        `rabbitmqctl` would do the same, but takes a second of CPU time to start.
        """
        command = [_program("erl_call"), "-n", self._environment()["RABBITMQ_NODENAME"], "-e"]
        done = subprocess.run(
            command,
            input=f"{expressions}.\n",
            env=self._environment(),
            check=True,
            capture_output=True,
            text=True,
        )
        if not done.stdout.startswith("{ok, "):
            raise RuntimeError(f"RabbitMQ cannot evaluate {expressions}: {done.stdout}")
        return done.stdout.removeprefix("{ok, ").removesuffix("}")

    def _ended(self) -> None:
        assert self._node is not None
        self._node.wait(_STOP_SECONDS)
        self._node = None
        self._note_groups()

    def _note_groups(self) -> None:
        """Write our process groups atomically to a file, for the guard."""
        running = [str(process.pid) for process in (self._node, self._epmd) if process is not None]
        unfinished = self.folder / "groups.new"
        unfinished.write_text(" ".join(running))
        unfinished.rename(self.folder / "groups")

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _wait(self, process: subprocess.Popen[bytes], port: int, *, hello: bytes) -> None:
        self.wait_for_start(process, lambda: _answers(port, hello), self.folder / "output")

    def _write_config(self) -> None:
        """Write the node's configuration: https://www.rabbitmq.com/docs/definitions."""
        definitions = {
            "vhosts": [{"name": "/"}],
            "users": [
                {"name": name, "password": self.password, "tags": "", "limits": {}}
                for name in ("pushgate", "onlooker")
            ],
            "permissions": [
                {"user": "pushgate", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
                {"user": "onlooker", "vhost": "/", "configure": "^$", "write": "^$", "read": ".*"},
            ],
        }
        (self.folder / "definitions.json").write_text(json.dumps(definitions))
        (self.folder / "rabbitmq.conf").write_text(
            f"load_definitions = {self.folder / 'definitions.json'}\ndisk_free_limit.absolute = 1MB\n"
            f"listeners.ssl.default = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.cacertfile = {self.certified.authority}\n"
            f"ssl_options.certfile = {self.certified.certificate}\n"
            f"ssl_options.keyfile = {self.certified.key}\nssl_options.verify = verify_peer\n"
            "ssl_options.fail_if_no_peer_cert = true\n"
        )
        self._write_plugins([_PLUGIN])
        (self.folder / "environment").touch()

    def _write_plugins(self, names: list[str]) -> None:
        (self.folder / "plugins").write_text(f"[{','.join(names)}].\n")

    def _environment(self) -> dict[str, str]:
        """See https://www.rabbitmq.com/docs/configure#supported-environment-variables."""
        folder = self.folder
        return {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "RABBITMQ_NODENAME": f"pushgate-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            # Schedulers that spin while they wait take a core from the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        }


def _server() -> str:
    # Debian's command on PATH runs only as another user; the program behind it does not.
    return find_program("rabbitmq-server", "rabbitmq/bin/rabbitmq-server")


def _program(name: str) -> str:
    """Return a program of Erlang's, which some distributions do not put on PATH."""
    return find_program(name, f"erlang/erts-*/bin/{name}")


def _answers(port: int, hello: bytes) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(hello)
        return not hello or connection.recv(1) == _METHOD_FRAME
    return False
