"""Run every bench, show the table, and write build/bench.json."""

from pathlib import Path

from rich.console import Console

from bench import door, fetch, package, providers, relay
from bench.report import show, write

console = Console(highlight=False)
with console.status("") as status:
    rows = [row for bench in (door, providers, fetch, package, relay) for row in bench.run(status.update)]
show(rows, console)
write(rows, Path("build/bench.json"))
