"""Run all benchmarks, or the named ones, show the table, and write build/bench.json.

python -m bench [webhook] [providers] [fetch] [repositories] [library] [package] [claims] [relay] [results]
    [statuses] [lanes] [failover] [limits] [lists-sqlite] [lists-postgresql]

The exit status is 0 if every row was measured, whether or not it reaches its aim.
"""

import signal
import sys
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from bench import (
    claims,
    failover,
    fetch,
    lanes,
    library,
    limits,
    lists,
    package,
    providers,
    relay,
    repositories,
    results,
    statuses,
    webhook,
)
from bench.report import Row, measured, show, write

BENCHES = {
    "webhook": webhook.run,
    "providers": providers.run,
    "fetch": fetch.run,
    "repositories": repositories.run,
    "library": library.run,
    "package": package.run,
    "claims": claims.run,
    "relay": relay.run,
    "results": results.run,
    "statuses": statuses.run,
    "lanes": lanes.run,
    "failover": failover.run,
    "limits": limits.run,
    "lists-sqlite": lists.on_sqlite,
    "lists-postgresql": lists.on_postgresql,
}
RESULT = Path("build/bench.json")
# A benchmark plans for at most 100 s; after so many, what it measures at the moment is given up; a million
# deliveries are not stored in less than minutes.
MAX_SECONDS = max(240, lists.DELIVERIES // 2500)
MORE_SECONDS = 30


def _describe(progress: Progress, task: TaskID, text: str) -> None:
    progress.update(task, description=text)


def _give_up(_number: int, _frame: object) -> None:
    # Not a TimeoutError: code that handles network errors would take it for one of those.
    raise RuntimeError(f"the benchmark takes longer than {MAX_SECONDS} s")


names = sys.argv[1:] or list(BENCHES)
unknown = [name for name in names if name not in BENCHES]
if unknown:
    sys.exit(f"there is no benchmark {unknown[0]}; choose from {', '.join(BENCHES)}")
console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=150)
rows: list[Row] = []
signal.signal(signal.SIGALRM, _give_up)
columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
    for name in names:
        task = progress.add_task(name, total=1)
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS, MORE_SECONDS)
        describe = partial(_describe, progress, task)
        rows += measured(name, BENCHES[name], describe)
        signal.setitimer(signal.ITIMER_REAL, 0)
        progress.update(task, description=name, completed=1)
        write(rows, RESULT)
show(rows, console)
sys.exit(any(row.reason is not None for row in rows))
