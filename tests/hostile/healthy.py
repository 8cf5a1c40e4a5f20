"""The healthy connection: a push about every second, each of which must be planned within seconds."""

import contextlib
import threading
import time
from dataclasses import dataclass, field
from urllib.error import URLError

from gateway.cli.api_client import ApiError
from testing.service import Project, Service

_BETWEEN_PUSHES = 1.0


@dataclass(slots=True)
class Pushes:
    """The results of the pushes of one phase, in seconds from the webhook to the plan."""

    took: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    # Answers other than 202: a provider, and this sender, then repeats the delivery.
    refused: int = 0


class Pusher:
    """Pushes and delivers until it is stopped; `pushes` has the results of the current phase."""

    def __init__(self, service: Service, project: Project, *, patience: float) -> None:
        """Connect the project. A push that is not planned after so many seconds is lost."""
        self._patience = patience
        self.pushes = Pushes()
        self._service = service
        self._project = project
        self._connection = service.connect(project.url, "train@main", name="healthy")
        self._before = project.first
        self._count = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="healthy pushes")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current push."""
        self._end.set()
        self._thread.join()

    def next_phase(self) -> Pushes:
        """Begin the count of another phase, and return it."""
        self.pushes = Pushes()
        return self.pushes

    def _run(self) -> None:
        while not self._end.wait(_BETWEEN_PUSHES):
            self._push()

    def _push(self) -> None:
        self._count += 1
        commit = self._project.push(f"Push {self._count}", {"count.txt": f"{self._count}\n"})
        body = self._project.payload(self._before, commit)
        self._before = commit
        pushes, began = self.pushes, time.monotonic()
        delivery = None
        while time.monotonic() < began + self._patience:
            # Retry as providers do if the gateway refuses, or does not answer in time.
            with contextlib.suppress(ApiError, URLError, OSError):
                if delivery is None:
                    status, answer = self._service.deliver(self._connection, body)
                    if status == 202:
                        delivery = answer["delivery"]
                    else:
                        pushes.refused += 1
                if delivery is not None:
                    states = {
                        update["state"]: update["reason"]
                        for update in self._service.api.get(f"/deliveries/{delivery}")["updates"]
                    }
                    if set(states) == {"planned"}:
                        pushes.took.append(time.monotonic() - began)
                        return
                    if "pending" not in states:
                        pushes.lost.append(f"{commit[:12]}: {states}")
                        return
            time.sleep(0.1)
        pushes.lost.append(f"{commit[:12]}: not planned after {self._patience:.0f} s")
