"""The socket that the gateway listens on, opened before anything runs: a port that is taken is told first."""

import socket

from gateway.errors import SettingError
from gateway.settings import Settings


def listen(settings: Settings) -> socket.socket:
    """Listen on the settings' host and port; on any free port where that is 0. Raises `SettingError`."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        # Python repeats the address in brackets.
        reason = str(error.strerror).partition(" (while")[0]
        raise SettingError(
            f"cannot listen on {settings.host}, port {settings.port}: {reason};"
            " name another address with --host or another port with --port"
        ) from error
