"""Run all benchmarks, or the named ones, show the table, and write build/bench.json.

python -m bench [webhook] [providers] [fetch] [package] [relay]
"""

import sys
from pathlib import Path

from rich.console import Console

from bench import fetch, package, providers, relay, webhook
from bench.report import show, write

BENCHES = {
    "webhook": webhook,
    "providers": providers,
    "fetch": fetch,
    "package": package,
    "relay": relay,
}

names = sys.argv[1:] or list(BENCHES)
unknown = [name for name in names if name not in BENCHES]
if unknown:
    sys.exit(f"there is no benchmark {unknown[0]}; choose from {', '.join(BENCHES)}")
console = Console(highlight=False)
with console.status("") as status:
    rows = [row for name in names for row in BENCHES[name].run(status.update)]
show(rows, console)
write(rows, Path("build/bench.json"))
