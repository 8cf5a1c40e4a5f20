"""What holds for every command: --json, examples, names wherever ids do, and the operations of the API."""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.app import app

ROOT = Path(__file__).parents[2]

WITHOUT_JSON = {
    "serve": "it runs the service",
    "migrate": "it prints one sentence",
    "completion": "it prints a script",
    "hook-script": "it prints a script",
    "keys token": "it prints the token alone, so that it can be piped into `login`",
}
"""Commands without --json, with the reason."""

COMMANDS_OF_OPERATIONS = {
    "cancel_execution": "cancel",
    "check_connection": "check",
    "check_identity": "identity check",
    "check_source_webhook": "doctor",
    "check_webhook": "doctor",
    "create_channel": "notify add",
    "create_connection": "connect",
    "create_identity": "identity add",
    "create_source": "source add",
    "decide_source_repository": "source decide",
    "delete_channel": "notify remove",
    "delete_connection": "delete",
    "delete_identity": "identity delete",
    "delete_source": "source delete",
    "drop_execution": "drop",
    "explain": "explain",
    "fetch_connection": "fetch",
    "forget_repository": "forget-repository",
    "get_channel": "show",
    "get_connection": "show",
    "get_delivery": "show",
    "get_delivery_body": "request",
    "get_delivery_request": "request",
    "get_execution": "show",
    "get_identity": "show",
    "get_source": "source show",
    "get_statistics": "statistics",
    "get_source_webhook": "webhook show",
    "get_webhook": "webhook show",
    "list_channels": "notify list",
    "list_connections": "connections",
    "list_deliveries": "deliveries",
    "list_executions": "executions",
    "list_health": "status",
    "list_identities": "identity list",
    "drop_dead_letters": "dead-letters",
    "list_dead_letters": "dead-letters",
    "list_refs": "refs",
    "put_back_dead_letters": "dead-letters",
    "list_source": "source list-now",
    "list_source_repositories": "source repositories",
    "list_sources": "source list",
    "plan_connection": "plan",
    "redeliver": "redeliver",
    "redeliver_to_source": "redeliver",
    "receive_webhook": "send",
    "register_source_webhook": "webhook register",
    "register_webhook": "webhook register",
    "remove_source_webhook": "webhook remove",
    "remove_webhook": "webhook remove",
    "replay_deliveries": "replay",
    "replay_delivery": "replay",
    "republish_execution": "republish",
    "rerun_execution": "rerun",
    "revoke_secret": "revoke-secret",
    "revoke_source_secret": "source revoke-secret",
    "rotate_secret": "rotate-secret",
    "rotate_source_secret": "source rotate-secret",
    "stream_executions": "executions",
    "test_channel": "notify test",
    "update_channel": "notify edit",
    "update_connection": "edit",
    "update_identity": "identity edit",
    "update_source": "source edit",
}
"""The command that carries out each operation of the API; some operations have several."""

WITHOUT_COMMAND = {
    "get_asyncapi": "a document for programs",
    "get_openapi": "a document for programs",
    "get_package": "runners download packages by signed URLs",
    "get_schema": "a document for programs",
    "head_package": "runners download packages by signed URLs",
    "report_status": "runners report",
    "take_notification": "Valohai notifies",
}
"""Operations without a command, with the reason."""

NEW_NAMES = {("identity add", "name"), ("notify add", "name"), ("rename", "name")}
"""Arguments that are the name of a new record, or a new name."""

NAMED = {"connection", "name", "source", "identity", "channel"}
"""Arguments and options that refer to a record with a name."""


def leaves(command: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """Yield each command by its full name."""
    if not hasattr(command, "commands"):
        yield " ".join(names), command
        return
    for name, one in command.commands.items():
        yield from leaves(one, *names, name)


COMMANDS = dict(leaves(typer.main.get_command(app)))


def options(command: Any) -> set[str]:
    """Return the names of the options of a command."""
    return {name for one in command.params for name in [*one.opts, *one.secondary_opts]}


def examples(command: Any) -> list[str]:
    """Return the examples in the help of a command."""
    text = " ".join(inspect.cleandoc(command.help).split())
    _, _, listed = text.rpartition("Examples: ") if "Examples: " in text else text.rpartition("Example: ")
    return listed.split("; ")


def test_every_command_prints_json() -> None:
    """Or a table here has the reason why it does not."""
    assert {name for name, one in COMMANDS.items() if "--json" not in options(one)} == {*WITHOUT_JSON}


def test_the_list_of_commands_has_whole_sentences() -> None:
    """Also on a narrow terminal; those of the groups, too."""
    for group in ((), ("identity",), ("source",)):
        shown = CliRunner().invoke(app, [*group, "--help"], terminal_width=80).stdout
        assert "..." not in shown.partition("Commands:")[2]
        assert max(map(len, shown.splitlines())) <= 80


def test_the_help_of_every_command_has_examples() -> None:
    """Each one is of this command. tests/docs/test_commands.py runs those in docs/commands.md."""
    for name, command in COMMANDS.items():
        for example in examples(command):
            assert re.match(rf"(.*\| )?pushgate {name}( |$)", example), (name, example)


def test_names_are_taken_wherever_ids_are() -> None:
    """The help of each argument says so."""
    for name, command in COMMANDS.items():
        for one in command.params:
            is_of_record = one.name in NAMED and one.param_type_name == "argument"
            if is_of_record and (name, one.name) not in NEW_NAMES and not name.startswith("context "):
                assert re.search(r"\bid\b", one.help), (name, one.name)
                assert "name" in one.help, (name, one.name)
    assert "by id or name" in next(
        one.help for one in COMMANDS["deliveries"].params if one.name == "connection"
    )


def test_every_operation_of_the_api_has_a_command() -> None:
    """Or a table here has the reason why it has none."""
    document = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    operations = {one["operationId"] for path in document["paths"].values() for one in path.values()}
    assert operations == {*COMMANDS_OF_OPERATIONS, *WITHOUT_COMMAND}
    assert {*COMMANDS_OF_OPERATIONS.values()} <= {*COMMANDS}


@pytest.mark.parametrize("name", ["deliveries", "executions"])
def test_the_lists_have_the_filters_of_the_api(name: str) -> None:
    """The search is called `q` in the API; the pages of a list are read with --limit."""
    document = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    listing = document["paths"][f"/api/v1/{name}"]["get"]
    filters = {one["name"] for one in listing["parameters"] if one["in"] == "query"} - {"cursor", "q"}
    assert {f"--{one}" for one in {*filters, "search"}} <= options(COMMANDS[name])


def test_every_client_command_takes_the_options_of_its_gateway() -> None:
    """Those without them need no gateway."""
    without = {name for name, one in COMMANDS.items() if "--context" not in options(one)}
    assert without == {
        *("serve", "migrate", "restore", "completion", "keys rotate", "keys token"),
        *("login", "context list", "context use", "context delete", "send", "hook-script"),
    }
