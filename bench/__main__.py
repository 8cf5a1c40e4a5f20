"""Run every bench, or those that are named, show the table, and write build/bench.json.

python -m bench [door] [providers] [fetch] [package] [relay]
"""

import sys
from pathlib import Path

from rich.console import Console

from bench import door, fetch, package, providers, relay
from bench.report import show, write

BENCHES = {"door": door, "providers": providers, "fetch": fetch, "package": package, "relay": relay}

names = sys.argv[1:] or list(BENCHES)
unknown = [name for name in names if name not in BENCHES]
if unknown:
    sys.exit(f"there is no bench {unknown[0]}; there are {', '.join(BENCHES)}")
console = Console(highlight=False)
with console.status("") as status:
    rows = [row for name in names for row in BENCHES[name].run(status.update)]
show(rows, console)
write(rows, Path("build/bench.json"))
