"""Which gateway a command is a client of: one of an option, the environment, a context, or the local one."""

import inspect
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.models import OptionInfo

from gateway.cli import output
from gateway.cli.api_client import ApiError, Client
from gateway.cli.contexts import Contexts, stored_contexts
from gateway.cli.options import Data, data_folder, derived_token
from gateway.errors import Invalid

LOCAL_URL = "http://127.0.0.1:8080"

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The address of the gateway.", show_default=False),
]
InContext = Annotated[
    str | None,
    typer.Option(
        "--context", metavar="NAME", help="The gateway of this `pushgate login`.", show_default=False
    ),
]
Utc = Annotated[bool, typer.Option("--utc", help="Show exact times, in UTC.")]
SHARED = {
    "gateway_url": (Url, None),
    "gateway_context": (InContext, None),
    "data": (Data, None),
    "utc": (Utc, False),
}


@dataclass(frozen=True, slots=True)
class Given:
    """What the options before and behind the name of a command say about its gateway."""

    url: str | None = None
    context: str | None = None
    data: Path | None = None


_given: ContextVar[Given] = ContextVar("given")


def take_options(url: str | None, context: str | None, *, utc: bool) -> None:
    """Take the options before the name of the command."""
    _given.set(Given(url, context))
    output.exact_times.set(utc)


def client_command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Any]:
    """Add a command that is a client of a gateway: it also takes --url, --context, --data and --utc.

    A command with its own option --url takes that of the gateway only before its name.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(
            *, gateway_url: Url = None, gateway_context: InContext = None, data: Data, utc: Utc, **own: Any
        ) -> None:
            before = _given.get()
            if gateway_url or gateway_context:
                before = Given(gateway_url, gateway_context)
            _given.set(replace(before, data=data))
            output.exact_times.set(utc or output.exact_times.get())
            function(**own)

        parameters = _with_shared(list(inspect.signature(function).parameters.values()))
        vars(command)["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name)(command)
        return function

    return add


def _with_shared(own: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """Return the parameters of a command with the shared ones; an option --url of its own stays."""
    kind = inspect.Parameter.KEYWORD_ONLY
    shared = dict(SHARED)
    if any(parameter.name == "url" and _is_option(parameter) for parameter in own):
        del shared["gateway_url"]
    return [
        *(parameter.replace(kind=kind) for parameter in own),
        *(
            inspect.Parameter(name, kind, default=default, annotation=annotation)
            for name, (annotation, default) in shared.items()
        ),
    ]


def _is_option(parameter: inspect.Parameter) -> bool:
    return any(isinstance(one, OptionInfo) for one in get_args(parameter.annotation))


def client_of() -> Client:
    """Return a client of the gateway that the options, the environment or a context choose.

    Raises `Invalid` if they contradict each other, `ApiError` without an admin token.
    """
    given = _given.get(Given())
    if given.url is not None and given.context is not None:
        raise Invalid("--url and --context contradict each other: give one of them")
    contexts = stored_contexts()
    name = given.context
    if name is None and given.url is None and given.data is None and not _is_in_environment():
        name = contexts.current
    if name is not None:
        context = contexts.get(name)
        origin = f"the context {name}"
        return Client(context.url, context.token, origin=origin, token_origin=origin)
    url, origin = _address(given)
    try:
        token, token_origin = _token(given, url, contexts)
        return Client(url, token, origin=origin, token_origin=token_origin)
    except ApiError as error:
        error.gateway = f"{url} (from {origin})"
        raise


def _token(given: Given, url: str, contexts: Contexts) -> tuple[str, str]:
    """Return the admin token for an address, and what has named it. Raises `ApiError`."""
    if token := os.environ.get("PUSHGATE_ADMIN_TOKEN"):
        return token, "PUSHGATE_ADMIN_TOKEN"
    if token := contexts.token_for(url):
        return token, "the context with this URL"
    folder = data_folder(given.data)
    try:
        return derived_token(folder), f"the data folder {folder}"
    except OSError:
        raise ApiError(
            "no admin token: sign in with `pushgate login URL`, set PUSHGATE_ADMIN_TOKEN, or give the"
            f" gateway's data folder with --data; {folder} contains no key"
        ) from None


def _is_in_environment() -> bool:
    names = ("PUSHGATE_URL", "PUSHGATE_ADMIN_TOKEN", "PUSHGATE_DATA_DIR")
    return any(os.environ.get(name) for name in names)


def _address(given: Given) -> tuple[str, str]:
    """Return the URL of the gateway, and what has named it."""
    if given.url is not None:
        return given.url, "--url"
    if url := os.environ.get("PUSHGATE_URL"):
        return url, "PUSHGATE_URL"
    return LOCAL_URL, "the default"
