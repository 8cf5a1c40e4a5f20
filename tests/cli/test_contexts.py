"""Which gateway a command uses: `login`, contexts, the options and the environment."""

import json
import os
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gateway.cli.contexts import Context, Contexts, store, stored_contexts
from gateway.errors import Invalid
from testing.certificate import make_certificate
from testing.service import ADMIN_TOKEN, Service
from testing.service import run_pushgate as run

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a gateway without a worker."""
    with Service(tmp_path_factory.mktemp("gateway") / "data", ROLE="web") as service:
        yield service


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Return the variables of a person without contexts."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_DATA_HOME": str(tmp_path / "none")}


def test_login_checks_and_stores_a_token(web: Service, home: dict[str, str], tmp_path: Path) -> None:
    """In a file that only its owner can read; a refused token is not stored; the token is never shown."""
    token = tmp_path / "token"
    token.write_text(f"{ADMIN_TOKEN}\n")
    wrong = tmp_path / "wrong"
    wrong.write_text("another token\n")
    refused = run("login", web.url, f"--token-file={wrong}", variables=home)
    assert refused.returncode == 1
    assert f"[gateway {web.url} (from the argument)]" in refused.stderr
    assert not Path(home["XDG_CONFIG_HOME"]).exists()

    done = run("login", f"{web.url}/", "--name=prod", f"--token-file={token}", variables=home)
    assert (done.returncode, done.stderr) == (0, "")
    file = Path(home["XDG_CONFIG_HOME"], "pushgate", "contexts.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    connections = run("connections", "--json", variables=home)
    assert json.loads(connections.stdout)["items"] == []
    listed = run("context", "list", "--json", variables=home)
    assert json.loads(listed.stdout)["items"] == [{"name": "prod", "url": web.url, "is_current": True}]
    assert ADMIN_TOKEN not in done.stdout + listed.stdout + repr(Context(web.url, ADMIN_TOKEN))

    file.chmod(0o644)
    assert "chmod 600" in run("connections", variables=home).stderr
    file.chmod(0o600)
    assert run("context", "use", variables=home).returncode == 0
    assert "no admin token" in run("connections", variables=home).stderr
    assert run("connections", "--context=prod", variables=home).returncode == 0
    assert run("context", "delete", "prod", variables=home).returncode == 0
    assert "there is no context prod" in run("context", "use", "prod", variables=home).stderr


def test_an_option_precedes_the_environment_and_that_a_context(web: Service, home: dict[str, str]) -> None:
    """Each error names the gateway, and what has chosen it."""
    for name, value in home.items():
        os.environ[name] = value
    try:
        store(Contexts().added("prod", Context(web.url, ADMIN_TOKEN)).added("dead", Context(AWAY[0], "x")))
    finally:
        for name in home:
            del os.environ[name]
    at = {"PUSHGATE_URL": AWAY[1], "PUSHGATE_ADMIN_TOKEN": "x"}
    for arguments, variables, expected in (
        ((), {}, f"cannot reach the gateway at {AWAY[0]} (from the context dead)"),
        ((), at, f"cannot reach the gateway at {AWAY[1]} (from PUSHGATE_URL)"),
        (("--url", AWAY[2]), at, f"cannot reach the gateway at {AWAY[2]} (from --url)"),
        (("--context=dead",), at, f"cannot reach the gateway at {AWAY[0]} (from the context dead)"),
        (("--url", web.url, "--context=prod"), {}, "contradict each other"),
        (("--context=none",), {}, "there is no context none; known are prod, dead"),
        (("--url", AWAY[2]), {}, f"[gateway {AWAY[2]} (from --url)]"),
        (("--data=/nowhere",), {}, "/nowhere contains no key [gateway http://127.0.0.1:8080"),
    ):
        done = run("connections", *arguments, variables={**home, **variables})
        assert (done.returncode, done.stdout) == (1, "")
        assert expected in done.stderr
        if "--data" not in str(arguments):
            before = run(*arguments, "connections", variables={**home, **variables})
            assert before.stderr == done.stderr
    # The token of a context is used for its URL, and for no other.
    assert run("connections", "--url", web.url, variables=home).returncode == 0


AWAY = [f"http://127.0.0.1:{port}" for port in (7, 9, 11)]


def test_a_damaged_file_is_an_error_without_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may contain a token."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert stored_contexts() == Contexts()
    store(Contexts().added("prod", Context("http://gateway", "the token")))
    file = tmp_path / "pushgate" / "contexts.json"
    for text in ("the token", '"the token"', '{"contexts": {"the token": 1}}', '{"contexts": []}'):
        file.write_text(text)
        with pytest.raises(Invalid, match="is damaged: delete it") as error:
            stored_contexts()
        assert "the token" not in str(error.value)


def test_a_certificate_of_an_own_authority_is_trusted_by_a_variable(tmp_path: Path) -> None:
    """The error without it names the variable."""
    made = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(made.certificate, made.key)
    server = HTTPServer(("127.0.0.1", 0), _NotAGateway)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"https://127.0.0.1:{server.server_port}"
    try:
        given = {"PUSHGATE_URL": url, "PUSHGATE_ADMIN_TOKEN": "the token"}
        done = run("connections", variables=given)
        assert f"cannot reach the gateway at {url} (from PUSHGATE_URL): " in done.stderr
        assert "set SSL_CERT_FILE" in done.stderr
        done = run("connections", variables={**given, "SSL_CERT_FILE": str(made.authority)})
        assert f"the server at {url} (from PUSHGATE_URL) is not a gateway" in done.stderr
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _NotAGateway(BaseHTTPRequestHandler):
    """Answers with a page."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""
