"""The gateway that the commands in the docs run against, with the names that the docs use."""

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from typer.testing import CliRunner

from gateway.cli.app import app
from gateway.errors import PushgateError
from testing.git_host import GitHost
from testing.provider_apis.fake import FakeRepository, serving
from testing.provider_apis.github import FakeGitHub
from testing.service import ADMIN_TOKEN, Project, Service
from tests.docs import documented
from tests.docs.documented import ROOT, Documented

NAME = "acme/digits"
TOKEN = "github_pat_canary_81f2"
SECRET = "the webhook secret of the docs"
GITHUB_PAGE = "https://github.com/acme/digits"
GITHUB_URL = f"{GITHUB_PAGE}.git"
ELLIPSES = frozenset(["...", "…"])
"""For options that the page has shown before."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command has ended; `output` has both streams, and the error if there was one."""

    status: int
    output: str


@cache
def command_tree() -> Any:
    """Return all commands: to make them takes as long as most of them run."""
    return typer.main.get_command(app)


def run(arguments: list[str], given: str | None, variables: dict[str, str]) -> Ran:
    """Run `pushgate` in this process."""
    with CliRunner().isolation(input=given, env=variables) as (_, _, output):
        try:
            command_tree().main(args=arguments, prog_name="pushgate")
        except SystemExit as ended:
            return Ran(int(ended.code or 0), output.getvalue().decode())
        except PushgateError as error:
            return Ran(1, f"{output.getvalue().decode()}{error}")
    raise AssertionError("a command ends with SystemExit")


@dataclass
class World:
    """One gateway with the connection `acme/digits`, the identity `acme-bot`, a delivery and executions.

    Git host and GitHub's API are on this machine; nothing else can be reached.
    """

    service: Service
    github: FakeGitHub
    project: Project
    folder: Path
    connection: Any = None
    delivery: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def prepare(self) -> None:
        """Connect the repository, and let a push become an execution."""
        body = {
            "name": "acme-bot",
            "provider": "github",
            "token": TOKEN,
            "api_url": f"{self.github.url}/api/v3",
        }
        self.service.api.send("POST", "/identities", body)
        self.connection = self.service.connect(
            self.project.url, "train@**", identity="acme-bot", name=NAME, secret=SECRET, statuses=False
        )
        self.project.tree.git("push", "--quiet", "--set-upstream", "origin", "main")
        self.delivery = self._push("main")["id"]
        self.service.api.send("POST", f"/connections/{self.connection['id']}/webhook", wait=15)
        (self.folder / "payload.json").write_bytes(self.project.payload(None, self.project.first))
        (self.folder / "rules.yaml").write_text("- {match: [ml-*]}\n", encoding="utf-8")
        text = (ROOT / "docs" / "connect.md").read_text(encoding="utf-8")
        [file] = re.findall(r"```yaml\n(connections:.*?)```", text, re.DOTALL)
        (self.folder / "connections.yaml").write_text(file, encoding="utf-8")
        [login] = documented.commands("    pushgate login https://pushgate.example --name staging")
        self.run(login)

    def _push(self, branch: str) -> Any:
        payload = self.project.payload(None, self.project.first, f"refs/heads/{branch}")
        return self.service.settled(self.service.deliver(self.connection, payload)[1]["delivery"])

    def execution(self, *, is_over: bool = False) -> str:
        """Return the id of a new execution, which waits for a broker or has been cancelled."""
        delivery = self._push(f"branch-{next(self.numbers)}")["id"]
        [made] = self.service.api.get("/executions", delivery=delivery)["items"]
        if is_over:
            self.service.api.send("POST", f"/executions/{made['id']}/cancel", {})
        return str(made["id"])

    def tidy(self) -> None:
        """Delete what the commands of a page have made, so that the next page finds the same gateway."""
        api = self.service.api
        for one in api.items("/connections"):
            if one["id"] != self.connection["id"]:
                api.send("DELETE", f"/connections/{one['id']}")
        for path in ("/sources", "/notification-channels", "/identities"):
            for one in api.items(path):
                if one["name"] != "acme-bot":
                    api.send("DELETE", f"{path}/{one['id']}")

    def run(self, command: Documented) -> "Ran":
        """Run a command of `pushgate` in this process, with real names in place of the placeholders."""
        reads = command.source is not None or command.words[0] == "login"
        given = self._content("stdin", command.words) if reads else None
        if command.words[:2] == ("source", "add"):
            self._forget_sources()
        if command.words[:2] == ("source", "decide"):
            self.service.api.send("POST", f"/sources/{command.words[2]}/list", wait=15)
        done = run(self._arguments(command.words), given, self.variables())
        if "| jq .message > request.json" in command.text:
            request = json.dumps(json.loads(done.output)["message"])
            (self.folder / "request.json").write_text(request, encoding="utf-8")
        return done

    def variables(self, execution: str | None = None) -> dict[str, str]:
        """Return the variables that the docs name, with the URLs of an execution if it is given."""
        message = self.service.api.get(f"/executions/{execution}")["message"] if execution else None
        urls = {"URL": message["package"]["url"], "STATUS_URL": message["status_url"]} if message else {}
        return {
            "PUSHGATE_URL": self.service.url,
            "PUSHGATE_ADMIN_TOKEN": ADMIN_TOKEN,
            "PUSHGATE_DATA_DIR": str(self.service.data),
            "XDG_CONFIG_HOME": str(self.folder),
            "ACME_SECRET": SECRET,
            "DIGITS_SECRET": SECRET,
            "WEBHOOK_SECRET": SECRET,
            **urls,
        }

    def _forget_sources(self) -> None:
        for one in self.service.api.items("/sources"):
            self.service.api.send("DELETE", f"/sources/{one['id']}")

    def _arguments(self, words: tuple[str, ...]) -> list[str]:
        """Return the words with what the placeholders stand for."""
        match words[0]:
            case "connect":
                words = self._connecting(words)
            case "delete" if "--yes" not in words:
                words += ("--yes",)  # there is no terminal to ask at
            case "source" if "--org" in words and "acme-bot" in words:
                at = words.index("--org")
                words = (*words[:at], "--url", f"{self.github.url}/{words[at + 1]}", *words[at + 2 :])
        return [self._value(words, at) for at in range(len(words))]

    def _connecting(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Return the arguments of `connect`: each makes a connection of its own, in a project of its own."""
        number = next(self.numbers)
        if words[1] in ELLIPSES:
            words = ("connect", GITHUB_URL, *words[1:])
        is_here = words[1] == GITHUB_URL and ("--identity" not in words or "acme-bot" in words)
        given = [self.project.url if is_here and word == GITHUB_URL else word for word in words]
        if not ELLIPSES.isdisjoint(words):
            given = [word for word in given if word not in ELLIPSES]
            provider = "gitlab" if "gitlab.com" in words[1] else "github"
            given += [] if "--provider" in words else ["--provider", provider]
            given += [] if "--project" in words else ["--project", "digits"]
        given[given.index("--project") + 1] = f"project-{number}"
        # No other host can be reached.
        given += ["--name", f"digits-{number}", *([] if is_here else ["--wait", "0"])]
        return tuple(given)

    def _value(self, words: tuple[str, ...], at: int) -> str:
        word, option = words[at], words[at - 1]
        if option == "--data":
            return str(self._copy() if words[0] in {"restore", "keys", "migrate"} else self.service.data)
        if word in {"FILE", "~/pushgate-secret"}:
            path = self.folder / option.strip("-")
            path.write_text(self._content(option, words), encoding="utf-8")
            return str(path)
        if at == 1 and words[0] == "login":
            return self.service.url
        if at == 1 and words[0] in {"rename", "delete", "edit", "rotate-secret", "revoke-secret"}:
            made = self.service.connect(self.project.url, name=f"digits-{next(self.numbers)}")
            return str(made["name"])
        if word in {"ID", "EXECUTION"}:
            return self._id_for(words)
        return self._names().get(word, word)

    def _copy(self) -> Path:
        """Return a data folder with a backup of the database, as docs/restore.md makes it."""
        folder = self.folder / f"restored-{next(self.numbers)}"
        folder.mkdir()
        there, here = (sqlite3.connect(one / "pushgate.db") for one in (self.service.data, folder))
        with closing(there), closing(here):
            there.backup(here)
        shutil.copy(self.service.data / "secret.key", folder)
        return folder

    def _names(self) -> dict[str, str]:
        return {
            "NAME": NAME,
            "CONNECTION": NAME,
            "DELIVERY": self.delivery,
            "COMMIT": self.project.first,
            "SHA": self.project.first,
            "4f2a9c1": self.project.first[:7],
            GITHUB_PAGE: self.project.url.removesuffix(".git"),
            "WEBHOOK_URL": self.connection["hook_url"],
            "URL": self.connection["hook_url"],
        }

    def _id_for(self, words: tuple[str, ...]) -> str:
        match words[0]:
            case "deliveries" | "explain" | "replay":
                return self.delivery
            case "identity":
                return "123456"
            case command:
                return self.execution(is_over=command == "rerun")

    def _content(self, option: str, words: tuple[str, ...]) -> str:
        """Return the content of standard input, or of a file that an option names: by default a token."""
        if option == "--key-file":
            return _pem(rsa.generate_private_key(65537, 2048))
        if option == "--private-key":
            return _pem(ed25519.Ed25519PrivateKey.generate())
        if option == "--url-file" or words[0] == "notify":
            return "https://hooks.example.com/services/secret"
        if option == "--secret-file":
            return SECRET
        return ADMIN_TOKEN if words[0] == "login" else TOKEN


def _pem(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Start the git host, GitHub's API and the gateway."""
    with ExitStack() as stack:
        host = stack.enter_context(GitHost(folder / "git"))
        project = Project(host, folder)
        repository = FakeRepository(id="1", full_name=NAME, url=project.url)
        github = FakeGitHub(tokens={TOKEN: {NAME, "acme"}}, repositories=[repository])
        stack.enter_context(serving(github))
        service = stack.enter_context(Service(folder / "data"))
        (folder / "work").mkdir()
        made = World(service, github, project, folder / "work")
        made.prepare()
        yield made
