"""The settings: one frozen value, read once, at the start. Unknown and wrong settings are refused."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from gateway.errors import SettingError
from gateway.messages.execution_request import MAX_REQUEST_BYTES
from gateway.messages.execution_states import MAX_LOST_AFTER_HOURS
from gateway.messages.names import EventName, Lane
from gateway.text.validation import suggestion

PREFIX = "PUSHGATE_"

# Variables of the client commands, or of the start itself, which are not settings of the service.
_NOT_SETTINGS = frozenset({"PUSHGATE_URL", "PUSHGATE_CONFIG", "PUSHGATE_SECRETS_DIR"})

MIB = 1024 * 1024

MIN_TOKEN_LENGTH = 32
"""The minimum number of characters of an admin token that cannot be guessed."""


# The memory limit of a container, in version 2 and in version 1 of control groups.
_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def git_memory(limits: Iterable[Path] = _MEMORY_LIMITS) -> int:
    """Return the memory of one git process: 4 GiB, or less on a small machine or in a small container."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in limits:
        with suppress(OSError, ValueError):  # no limit: the file does not exist, or contains "max"
            memory = min(memory, int(path.read_text()))
    return max(1024 * MIB, min(4096 * MIB, memory * 2 // 3))


def data_home() -> Path:
    """Return the default data folder.

    https://specifications.freedesktop.org/basedir-spec/latest/
    """
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else expanded(Path("~/.local/share"))) / "pushgate"


def expanded(path: Path) -> Path:
    """Return a path with its ~ expanded. Raises `SettingError` if the home folder is unknown."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise SettingError(
            f"cannot expand {path}: HOME is not set, and this user has no home folder. Give the data folder"
            " with --data or PUSHGATE_DATA_DIR, without ~"
        ) from None


def _names(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


# The role that alone uses a setting; the others belong to both. docs/settings.md shows it.
_WEB: dict[str, JsonValue] = {"role": "web"}
_WORKER: dict[str, JsonValue] = {"role": "worker"}


class Settings(BaseSettings):
    """Every setting of the service. Sizes are bytes, times are seconds.

    The text below each field is its text in docs/settings.md, in Markdown.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", case_sensitive=False)

    host: str = Field(default="127.0.0.1", min_length=1)
    """The address to listen on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """The port to listen on; 0 for any free port."""
    public_url: str | None = None
    """The prefix of webhook URLs, and the address of the dashboard for browsers. If unset: `http://HOST:PORT`."""
    data_dir: Path = Field(default_factory=data_home)
    """The folder of the database, the mirrors, and the secret key if you set none. If unset:
    `~/.local/share/pushgate`.
    """
    database_url: SecretStr | None = None
    """`postgresql://user:password@host/name`; requires `SECRET_KEY`. It may name several hosts: see [A
    standby of PostgreSQL](operate.md#a-standby-of-postgresql). If unset: SQLite in the data folder.
    """
    secret_key: SecretStr | None = None
    """32 characters or more; encrypts secrets at rest. If unset: a file in the data folder."""
    secret_key_previous: SecretStr | None = None
    """The previous key, during a [key change](operate.md#changing-the-secret-key)."""
    admin_token: SecretStr | None = None
    """32 characters or more; the Bearer token of the REST API, and the password of the dashboard. If unset:
    derived from the secret key; `pushgate keys token` prints it.
    """
    role: Literal["all", "web", "worker"] = "all"
    """`web`: the webhook endpoint, the API and the dashboard; `worker`: fetches, plans, publishes, and
    answers only health checks; `all`: both.
    """
    workers: int = Field(default=1, ge=1, le=64)
    """Processes of the role that share the port and the data folder; more than one requires PostgreSQL."""
    hang_timeout: float = Field(default=60, ge=2, le=3600)
    """Seconds after which the supervisor of several processes kills one whose event loop stands still."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto`: `console` on a terminal, otherwise `json`."""
    log_deliveries: bool = Field(default=False, json_schema_extra=_WEB)
    """Log a line, `delivery accepted`, for each accepted delivery."""
    amqp_url: SecretStr | None = None
    """The broker, or several of its nodes separated by commas. If unset, requests stay in the store."""
    amqp_exchange: str = Field(default="pushgate", min_length=1, max_length=200)
    """The exchange that Pushgate declares and publishes to."""
    amqp_queue: str = Field(default="pushgate.executions", min_length=1, max_length=200)
    """The queue of execution requests that Pushgate declares."""
    amqp_declare: bool = True
    """False: you own the exchange and queues, also `pushgate.results` for [reports](message.md#reporting),
    and Pushgate only checks that they exist.
    """
    amqp_lanes: Annotated[tuple[Lane, ...], NoDecode, BeforeValidator(_names)] = ()
    """Priority lanes; each has a queue of its own, `pushgate.executions.LANE`."""
    amqp_ordered: int = Field(default=0, ge=0, le=256)
    """Partitions for [requests that must be processed in order](operate.md#requests-in-order); 0: one queue,
    any number of concurrent consumers.
    """
    amqp_content_mode: Literal["binary", "structured"] = "binary"
    """How CloudEvents are written: see [message.md](message.md#structured-mode)."""
    amqp_events: Annotated[tuple[EventName, ...], NoDecode, BeforeValidator(_names)] = ()
    """Events to publish beside execution requests."""
    amqp_ca_file: Path | None = None
    """For `amqps`: the certificate authorities to trust. If unset: the system's."""
    amqp_cert_file: Path | None = None
    """For `amqps`: the client certificate."""
    amqp_key_file: Path | None = None
    """For `amqps`: its private key."""
    relay_lanes: int = Field(default=1, ge=1, le=16, json_schema_extra=_WORKER)
    """Lanes in which requests are published, each by one worker process at a time: 1, 2, 4, 8 or 16; see
    [Several machines](operate.md#several-machines).
    """
    max_request_bytes: int = Field(default=MAX_REQUEST_BYTES, ge=64 * 1024, le=512 * MIB)
    """The maximum size of the body of an execution request, in bytes, without its package. A trigger whose
    request would be larger fails, and the delivery shows both numbers. RabbitMQ 4 accepts at most 16 MiB
    by default (`max_message_size`).
    """
    body_limit: int = Field(default=25 * MIB, ge=1024, json_schema_extra=_WEB)
    """The maximum size of a webhook's body, in bytes."""
    trusted_proxies: int = Field(default=0, ge=0, le=10, json_schema_extra=_WEB)
    """How many of your proxies append to `X-Forwarded-For` before a webhook reaches Pushgate."""
    http_connections: int = Field(default=1000, ge=10, le=100_000)
    """Client connections of one process; beyond it, the connection that has been silent longest is closed."""
    http_keep_alive: int = Field(default=75, ge=1, le=3600)
    """Seconds that a connection may stay idle between two requests; set it above your load balancer's idle
    time-out.
    """
    fetch_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = ()
    """Hosts from which Pushgate may fetch. If empty: any host."""
    fetch_allow_http: bool = False
    """Allow http clone URLs, for tests on loopback."""
    fetch_timeout: float = Field(default=600, gt=0)
    """Seconds that one git command may take."""
    fetches_per_project: int = Field(default=8, ge=0, json_schema_extra=_WORKER)
    """Connections of one project in progress at the same time, over all processes; 0: no limit."""
    fetches_per_host: int = Field(default=16, ge=0, json_schema_extra=_WORKER)
    """The same for connections to one git host, including looks at its remotes."""
    concurrency: int = Field(default=4, ge=1, le=64, json_schema_extra=_WORKER)
    """Connections that one process works on at once. Two extra places are reserved for git hosts on which
    the process has no other work: one for any such host, and one for a host that answered its last fetch.
    """
    mirror_budget: int = Field(default=50 * 1024 * MIB, ge=MIB, json_schema_extra=_WORKER)
    """Bytes for all mirrors; the least recently used ones are deleted first."""
    git_max_memory_bytes: int = Field(default_factory=git_memory, ge=256 * MIB)
    """The address space of each git process; a push that needs more ends as `failed`. If unset: 4294967296,
    or two thirds of the memory of the machine or container if that is less, but at least 1 GiB.
    """
    git_max_cpu_seconds: int = Field(default=1800, ge=1)
    """Seconds of CPU time of each git process, all of its threads together."""
    git_max_file_bytes: int = Field(default=20 * 1024 * MIB, ge=MIB)
    """The size of a file that git writes, in bytes: the largest pack that can be fetched."""
    signers_file: Path | None = None
    """Allowed signers, in `ssh-keygen`'s format: their ssh signatures on commits are `valid`."""
    reconcile_every: float = Field(default=300, ge=10, le=86_400, json_schema_extra=_WORKER)
    """Seconds between two readings of a remote's refs. While webhooks report every change, the interval
    grows to up to 12 times this value, but never beyond a day.
    """
    reconcile_grace: float = Field(default=10, ge=0, le=600, json_schema_extra=_WORKER)
    """Seconds before a second look confirms what the first one found; 0: no second look."""
    reconcile_concurrency: int = Field(default=4, ge=1, le=64, json_schema_extra=_WORKER)
    """Remotes that a process looks at concurrently; each counts towards `FETCHES_PER_HOST`."""
    packages_url: str | None = None
    """Where packages are stored: `file:///…`, `s3://…`, `gs://…`, `az://…`; see
    [packages.md](packages.md#where-packages-are-stored). If unset: a folder in the data folder.
    """
    package_warn_bytes: int = Field(default=100_000_000, ge=1, json_schema_extra=_WORKER)
    """A larger compressed package causes a warning."""
    package_max_bytes: int = Field(default=1_000_000_000, ge=1, json_schema_extra=_WORKER)
    """A larger compressed package is refused."""
    package_max_unpacked_bytes: int = Field(default=10_000_000_000, ge=1, json_schema_extra=_WORKER)
    """A package that is larger than this when unpacked is refused."""
    package_keep_days: int = Field(default=90, ge=1, le=3650)
    """Days after which a package expires if no execution was planned or republished with it."""
    package_url_days: int = Field(default=7, ge=1, le=365)
    """Days for which the package URL in a request is valid, from its publication; at most 7 with buckets."""
    keep_days: int = Field(default=180, ge=0, le=36_500, json_schema_extra=_WORKER)
    """Days for which deliveries and executions are kept; 0: forever."""
    lost_after_hours: float = Field(default=24, ge=0, le=MAX_LOST_AFTER_HOURS, json_schema_extra=_WORKER)
    """Hours without a report after which an execution counts as `lost`, unless its trigger has
    `lost_after_hours`; 0: never. See [Runners that fall silent](operate.md#runners-that-fall-silent).
    """

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return expanded(value).absolute()

    @field_validator("signers_file", "amqp_ca_file", "amqp_cert_file", "amqp_key_file")
    @classmethod
    def _can_be_read(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                with value.open("rb") as file:
                    file.read(1)
            except OSError as error:
                raise ValueError(f"cannot read {value}: {error.strerror}") from None
        return value

    @field_validator("public_url")
    @classmethod
    def _is_a_url(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s?#]+", value):
            raise ValueError("it must begin with http:// or https:// and have no query")
        if value is not None:
            urlsplit(value)  # raises ValueError for an invalid URL
        return value.rstrip("/") if value else None

    @field_validator("amqp_url")
    @classmethod
    def _is_amqp(cls, value: SecretStr | None) -> SecretStr | None:
        urls = value.get_secret_value().split(",") if value is not None else []
        if not all(url.strip().startswith(("amqp://", "amqps://")) for url in urls):
            raise ValueError("it must begin with amqp:// or amqps://; in a list, each URL must")
        return value

    @field_validator("relay_lanes")
    @classmethod
    def _divides_sixteen(cls, value: int) -> int:
        if 16 % value:
            raise ValueError("it must be 1, 2, 4, 8 or 16")
        return value

    @field_validator("packages_url")
    @classmethod
    def _is_a_store(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(
            r"file:///[^\s?#]*|(s3|gs|az|abfs|abfss)://[^\s?#]+", value
        ):
            raise ValueError("it must begin with file:///, s3://, gs://, az://, abfs:// or abfss://")
        return value

    @model_validator(mode="after")
    def _shared_database_needs_a_shared_key(self) -> "Settings":
        if self.database_url is None:
            return self
        if not self.database_url.get_secret_value().startswith("sqlite") and self.secret_key is None:
            raise ValueError("PUSHGATE_SECRET_KEY must be set with a database that several machines share")
        return self

    @model_validator(mode="after")
    def _several_processes_need_a_server(self) -> "Settings":
        if self.workers == 1:
            return self
        if self.database.startswith("sqlite"):
            raise ValueError(
                "several processes on one SQLite database are no faster than one: leave workers at 1, or set"
                " PUSHGATE_DATABASE_URL to a PostgreSQL database"
            )
        return self

    @property
    def database(self) -> str:
        """The database's URL: by default a file in the data folder."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        # In a URL a % begins an escape, and a ? the query.
        return f"sqlite:///{quote(str(self.data_dir / 'pushgate.db'))}"

    @property
    def packages(self) -> str:
        """The URL of the package storage: by default a folder in the data folder."""
        return self.packages_url or (self.data_dir / "packages").as_uri()

    @property
    def base_url(self) -> str:
        """The base of webhook URLs and of links."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104 - compared, not bound
        return self.public_url or f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def read_settings(
    *, given: dict[str, Any], config: Path | None = None, secrets_dir: Path | None = None
) -> Settings:
    """Read the settings from the command line, the environment, a secrets folder and a YAML file.

    The first of these that contains a setting wins. Raises `SettingError` with one sentence that names the
    unknown or wrong setting, but never its value, which may be a secret.
    """
    _refuse_unknown_variables()
    if config is not None and not config.is_file():
        raise SettingError(f"the settings file {config} does not exist")
    if secrets_dir is not None:
        _refuse_unknown_files(secrets_dir)
    try:
        return _with_sources(config, secrets_dir)(**given)
    except ValidationError as error:
        raise SettingError(_sentence(error)) from None
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise SettingError(f"cannot read the settings: {error}") from error


def _with_sources(config: Path | None, secrets_dir: Path | None) -> type[Settings]:
    """Return the settings that are also read from these files."""

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is the library's
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = [init_settings, env_settings]
            if secrets_dir is not None:
                sources.append(SecretsSettingsSource(settings_cls, secrets_dir))
            if config is not None:
                sources.append(YamlConfigSettingsSource(settings_cls, config, yaml_file_encoding="utf-8"))
            return tuple(sources)

    return Sources


def _refuse_unknown_variables() -> None:
    for name in _unknown(os.environ):
        near = suggestion(name, [PREFIX + known.upper() for known in Settings.model_fields])
        raise SettingError(f"{name} is set in the environment, but Pushgate has no such setting{near}")


def _refuse_unknown_files(folder: Path) -> None:
    """Refuse files with our prefix that name no setting; other files in the folder are ignored."""
    if not folder.is_dir():
        raise SettingError(f"the secrets folder {folder} does not exist")
    for name in _unknown(path.name for path in folder.iterdir()):
        raise SettingError(f"{name} is in the secrets folder {folder}, but Pushgate has no such setting")


def _unknown(names: Iterable[str]) -> list[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | _NOT_SETTINGS
    return sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known)


def _sentence(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"Pushgate has no setting {name}{suggestion(name, Settings.model_fields)}"
    return f"the setting {name} ({PREFIX}{name.upper()}) is wrong: {message}"
