"""Run a step: unpack the package, place the inputs, and run the commands.

This module needs only Python's standard library: copy it together with `execution.py`, and adapt it to your
runners. It starts no containers, keeps no outputs, and applies no time limits and no stop conditions.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any, TextIO

_CHUNK_BYTES = 1024 * 1024
_LOG_LINES = 20
_LOG_COLUMNS = 300
_PLACEHOLDER = re.compile(r"\{(parameter|parameter-value):(.+?)\}")
_is_stopped = threading.Event()
_running: list["subprocess.Popen[str]"] = []


class Unusable(Exception):
    """The request can never be carried out, here or elsewhere: reject it for good."""


class Stopped(Exception):
    """The execution was stopped, because it was cancelled."""


@dataclass(frozen=True)
class File:
    """A file that an edge can pass on, with its path among the outputs or in the input."""

    path: Path
    name: PurePosixPath


@dataclass
class Result:
    """How an execution ended, what edges can pass on, and the last lines of the output."""

    status: int = 0
    summary: str = ""
    outputs: list[File] = field(default_factory=list)
    inputs: dict[str, list[File]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))


@dataclass
class Supply:
    """What a step gets beside its own values: from edges and from its task."""

    parameters: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[File]] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    append: bool = False


@dataclass(frozen=True)
class Package:
    """The downloaded package, and the folder in which executions get theirs."""

    archive: Path
    format: str
    folder: Path


def run_step(step: Mapping[str, Any], supply: Supply, package: Package) -> Result:
    """Run a step's commands, up to the first that fails."""
    folder = Path(tempfile.mkdtemp(dir=package.folder))
    code, inputs, outputs = folder / "code", folder / "inputs", folder / "outputs"
    for made in (code, inputs, outputs):
        made.mkdir()
    _unpack(package, code)
    result = Result(parameters={**step["parameters"], **supply.parameters})
    result.inputs = _place_inputs(step, supply, inputs)
    places = {"VH_REPOSITORY_DIR": code, "VH_INPUTS_DIR": inputs, "VH_OUTPUTS_DIR": outputs}
    environment = {
        **os.environ,
        **step["environment_variables"],
        **supply.variables,
        **{name: str(path) for name, path in places.items()},
    }
    for command in _commands(step, supply.parameters):
        print(f"+ {command}", flush=True)  # noqa: T201 - a runner shows what it does
        result.log.append(f"+ {command}"[:_LOG_COLUMNS])
        result.status = _shell(command, code, environment, result)
        if result.status != 0:
            break
    result.outputs = _files(outputs)
    return result


def _shell(command: str, folder: Path, environment: Mapping[str, str], result: Result) -> int:
    """Run a command, pass its output on, and collect its metadata; return the exit status.

    Raises `Stopped`.
    """
    if _is_stopped.is_set():
        raise Stopped
    with subprocess.Popen(  # noqa: S603
        ["sh", "-c", command],  # noqa: S607
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        _running.append(process)
        if _is_stopped.is_set():
            _end(process.pid)
        errors = threading.Thread(target=_pass_on, args=(process.stderr, sys.stderr, result))
        errors.start()
        _pass_on(process.stdout, sys.stdout, result)
        errors.join()
        _running.remove(process)
    if _is_stopped.is_set():
        raise Stopped
    return process.returncode


def stop() -> None:
    """Stop the execution that runs, from another thread; nothing runs until `start`."""
    _is_stopped.set()
    for process in tuple(_running):
        _end(process.pid)


def start() -> None:
    """Let executions run."""
    _is_stopped.clear()


def _end(process: int) -> None:
    """End a process and all that it has started, which Linux lists."""
    with contextlib.suppress(OSError):
        listed = Path(f"/proc/{process}/task/{process}/children")
        children = listed.read_text(encoding="utf-8").split() if listed.exists() else []
        os.kill(process, signal.SIGTERM)
        for child in children:
            _end(int(child))


def _pass_on(source: IO[str] | None, target: TextIO, result: Result) -> None:
    """Write each line to the runner's own output, and keep the last ones; those on stdout may be metadata."""
    for line in source or ():
        print(line, end="", file=target, flush=True)
        result.log.append(line.rstrip()[:_LOG_COLUMNS])
        if target is sys.stdout and line.startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):
                result.metadata.update(json.loads(line))


def _commands(step: Mapping[str, Any], supplied: Mapping[str, Any]) -> list[str]:
    """Return the commands with the supplied values, quoted, in place of their placeholders."""
    parameters = {item["name"]: item for item in step["definition"].get("parameters", ())}

    def words(found: re.Match[str]) -> str:
        kind, name = found.groups()
        if name not in supplied or name not in parameters:
            return found[0]
        value = supplied[name]
        if value is None:
            return ""
        texts = (
            arguments(parameters[name], value) if kind == "parameter" else [_text(parameters[name], value)]
        )
        return " ".join(map(shlex.quote, texts))

    return [_PLACEHOLDER.sub(words, command) for command in step["command"]]


def arguments(parameter: Mapping[str, Any], value: Any) -> list[str]:
    """Return the arguments, not yet quoted, that pass a value as the parameter's definition says."""
    template = parameter.get("pass-as", "--{name}={value}")
    if parameter["type"] == "flag":
        template = parameter.get("pass-as", "--{name}") if value else ""
        if "pass-true-as" in parameter or "pass-false-as" in parameter:
            template = parameter.get("pass-true-as" if value else "pass-false-as", "")
    multiple = parameter.get("multiple")
    if isinstance(value, list) and not multiple:
        raise Unusable(f"parameter {parameter['name']} takes one value, not a list")
    texts = [_text(parameter, atom) for atom in (value if isinstance(value, list) else [value])]
    if multiple == "separate" and texts:
        texts = [parameter.get("multiple-separator", ",").join(texts)]

    def filled(word: str, text: str) -> str:
        fields = {"{name}": parameter["name"], "{value}": text, "{v}": text}
        return re.sub(r"\{(name|value|v)\}", lambda found: fields[found[0]], word)

    return [filled(word, text) for text in texts for word in template.split()]


def _text(parameter: Mapping[str, Any], value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) and parameter["type"] != "flag" else str(value)


def _place_inputs(step: Mapping[str, Any], supply: Supply, folder: Path) -> dict[str, list[File]]:
    """Write the inputs to folders of their own: what edges pass on, and what the URLs name."""
    placed = {}
    for definition in step["definition"].get("inputs", ()):
        name = definition["name"]
        own = _inside(folder, PurePosixPath(name))
        own.mkdir(parents=True)
        passed = supply.files.get(name, [])
        urls = step["inputs"].get(name, ()) if not passed or supply.append else ()
        whole = definition.get("keep-directories", "none") not in {"none", False}
        rename = definition.get("filename") if len(passed) + len(urls) == 1 else None

        def target(path: PurePosixPath) -> Path:
            wanted = PurePosixPath(rename or (path if whole else path.name))  # noqa: B023 - used at once
            return _free(_inside(own, wanted))  # noqa: B023

        for file in passed:
            shutil.copyfile(file.path, target(file.name))
        for url in urls if definition.get("download") != "on-demand" else ():
            path = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path).lstrip("/"))
            _download(url, target(path))
        placed[name] = _files(own)
    return placed


def _inside(folder: Path, path: PurePosixPath) -> Path:
    """Return the path in this folder, with its parents made. Raises `Unusable` if it would leave it."""
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Unusable(f"this is no path in a folder: {path}")
    made = folder / path
    made.parent.mkdir(parents=True, exist_ok=True)
    return made


def _free(path: Path) -> Path:
    """Return a path that does not exist: the executions of a task write files of the same name."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(found for found in itertools.chain([path], names) if not found.exists())


def _files(folder: Path) -> list[File]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [File(path, PurePosixPath(path.relative_to(folder).as_posix())) for path in found]


def fetch(package: Mapping[str, Any], path: Path) -> None:
    """Download the package, and accept only the size and digest that the request names."""
    if _download(package["url"], path, limit=package["size"]) != package["sha256"]:
        raise Unusable("the package's SHA-256 differs from the request's")


def _opened(url: str) -> HTTPResponse:
    try:
        answer: HTTPResponse = urllib.request.urlopen(url, timeout=60)  # noqa: S310 - checked by the caller
    except urllib.error.HTTPError as error:
        if error.code in {403, 404}:
            # The URL or the package has expired: an operator can republish the request.
            raise Unusable(f"{url.partition('?')[0]} cannot be downloaded: {error}") from error
        raise
    return answer


def _download(url: str, path: Path, limit: int | None = None) -> str:
    """Write to a file what the URL names, and return its SHA-256."""
    if not url.startswith(("https://", "http://")):
        raise Unusable(f"this URL is not http or https: {url[:100]}")
    digest, size = hashlib.sha256(), 0
    with _opened(url) as answer, path.open("wb") as file:
        while chunk := answer.read(_CHUNK_BYTES):
            size += len(chunk)
            if limit is not None and size > limit:
                raise Unusable("the package is larger than the request says")
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _unpack(package: Package, folder: Path) -> None:
    # The filter refuses paths that would leave the folder; Python before 3.11.4 does not have it.
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    if package.format == "tar.zst":
        subprocess.run(["tar", "--zstd", "-xf", package.archive, "-C", folder], check=True)  # noqa: S603, S607
        return
    with tarfile.open(package.archive, "r:gz") as tar:
        tar.extractall(folder, **options)  # noqa: S202 - filtered, see above


def log(text: str) -> None:
    """Write a line to the runner's log, on standard error."""
    sys.stderr.write(text + "\n")
