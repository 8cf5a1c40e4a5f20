"""The git providers: headers and bytes in, facts out. No I/O, no clock, no import of the gateway."""

from collections.abc import Mapping
from types import MappingProxyType

from providers import github
from providers.model import Provider

PROVIDERS: Mapping[str, Provider] = MappingProxyType({"github": github})
"""Every provider by the name that a connection gives it. A new one is a module and a line here."""
