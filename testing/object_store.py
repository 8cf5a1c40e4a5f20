"""An S3 server for tests: moto's, on loopback, empty."""

import asyncio
import logging
import os
import secrets
import urllib.request
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from moto.server import ThreadedMotoServer

T = TypeVar("T")


class S3:
    """Serves while the `with` block lasts; the environment variables point to it."""

    def __init__(self) -> None:
        """Listen on a free port."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._before: dict[str, str | None] = {}

    def bucket(self, name: str, folder: str) -> str:
        """Make a bucket whose name begins with `name`; return the URL of a folder in it."""
        name = f"{name}-{secrets.token_hex(4)}"  # moto keeps its buckets from one server to the next
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")  # noqa: S310 - on loopback
        urllib.request.urlopen(request).close()  # noqa: S310 - on loopback
        return f"s3://{name}/{folder}"

    def __enter__(self) -> Self:
        """Start."""
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        variables = {
            "AWS_ACCESS_KEY_ID": "the tests'",
            "AWS_SECRET_ACCESS_KEY": "no secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
        }
        self._before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and restore the environment."""
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        self._server.stop()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end."""
    return asyncio.run(work)
