"""The listening socket, opened before anything else, so that a port in use is reported first."""

import socket

from gateway.errors import SettingError
from gateway.settings import Settings


def listen(settings: Settings) -> socket.socket:
    """Listen on the host and port of the settings; port 0 means any free port. Raises `SettingError`."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        # Python repeats the address in brackets.
        reason = str(error.strerror).partition(" (while")[0]
        raise SettingError(
            f"cannot listen on {settings.host}, port {settings.port}: {reason};"
            " choose another address with --host or another port with --port"
        ) from error
