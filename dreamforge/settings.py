"""Settings: the only module that reads the environment.

`Settings` has the types and defaults; `VARIABLES_BY_FIELD` has each field's environment variable and its format. All
other code receives values. `load_settings` is pure; `load_process_settings` passes it this process's environment.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from orchestrator.step_kinds import STEP_KINDS, default_weights
from projections.keys import parse_key_id
from runners.faults import FaultPlan

_VARIABLE_PREFIX = "DF_"
_TEST_VARIABLE_PREFIX = "DF_TEST_"  # read by the tests; never reported as an unknown setting

_DOTENV_LINE_PATTERN = re.compile(
    r"""(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=\s*
    (?: '(?P<single>[^']*)' | "(?P<double>(?:[^"\\]|\\.)*)" | (?P<bare>(?!['"]).*?) )
    \s*(?:(?<=\s)\#.*)?""",
    re.VERBOSE | re.ASCII,
)


class SettingsError(Exception):
    """A variable has an invalid value; the message names it and says what is accepted."""


class NotConfigured(SettingsError):
    """A command needs a service that no setting names, and there is no home; the message says what to set."""


class ValueFormat(msgspec.Struct, frozen=True):
    """A variable's format. requirement: ends the sentence "must be …". parse: raises ValueError for an invalid text."""

    requirement: str
    parse: Callable[[str], Any]


def integer_format(minimum: int, maximum: int, *, clamp: bool = False) -> ValueFormat:
    """An integer between two bounds. clamp: a value outside is moved to the nearer bound instead of rejected."""

    def parse(text: str) -> int:
        value = int(text)
        if not clamp and not minimum <= value <= maximum:
            raise ValueError
        return min(max(value, minimum), maximum)

    return ValueFormat(f"a whole number {'clamped to' if clamp else 'from'} {minimum} to {maximum}", parse)


def number_format(low: float, high: float, *, exclude_low: bool = False) -> ValueFormat:
    """A number between two bounds. exclude_low: the lower bound is excluded."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high or (exclude_low and value == low):
            raise ValueError
        return value

    return ValueFormat(
        f"a number {'above' if exclude_low else 'from'} {low:g} {'and at most' if exclude_low else 'to'} {high:g}",
        parse,
    )


def choice_format(*values: str) -> ValueFormat:
    """One of several words, case-insensitive."""

    def parse(text: str) -> str:
        if text.lower() not in values:
            raise ValueError
        return text.lower()

    return ValueFormat(f"one of {', '.join(values)}", parse)


def _parse_flag(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError


def _parse_database_url(text: str) -> str:
    match = re.fullmatch(r"(?:postgresql|postgres)(?:\+\w+)?(://.+)", text, re.DOTALL)
    if match is None:
        raise ValueError
    return f"postgresql{match[1]}"


def _parse_listen_url(text: str) -> str:
    return "" if text.lower() == "off" else _parse_database_url(text)


def _parse_url(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
        raise ValueError
    return url.rstrip("/")


def _parse_bucket(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", text):
        raise ValueError
    return text


def _parse_create_status(text: str) -> int:
    if text not in {"200", "202"}:
        raise ValueError
    return int(text)


def _parse_fault_plan(text: str) -> str:
    FaultPlan.parse(text)
    return text


def _parse_weights(text: str) -> dict[str, float]:
    pairs = [pair.split(":") for pair in text.split(",")]
    weights = {name.strip(): float(weight) for name, weight in pairs}
    total = sum(weights.values())
    if len(pairs) != len(weights) or weights.keys() != STEP_KINDS.keys():
        raise ValueError
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()) or not 0 < total < math.inf:
        raise ValueError
    return {name: weights[name] / total for name in STEP_KINDS}


def _parse_comma_separated(text: str, pattern: str, stripped_characters: str = " ") -> tuple[str, ...]:
    """Values with commas between. Each is `*` or matches the pattern. stripped_characters: removed at their ends."""
    values = tuple(value.strip().rstrip(stripped_characters) for value in text.split(","))
    if not all(value == "*" or re.fullmatch(pattern, value) for value in values):
        raise ValueError
    return values


def _parse_origins(text: str) -> tuple[str, ...]:
    return _parse_comma_separated(text, r"https?://[^\s/?#]+", stripped_characters="/")


def _parse_hosts(text: str) -> tuple[str, ...]:
    return _parse_comma_separated(text.lower(), r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def _none_if_auto(text: str) -> str | None:
    return None if text.lower() == "auto" else text


def _parse_api_key(text: str) -> str:
    if parse_key_id(text) is None:
        raise ValueError
    return text


TEXT_FORMAT = ValueFormat("any text", str)
PATH_FORMAT = ValueFormat("a path", lambda text: Path(text).expanduser())
_DTYPE_CHOICE_FORMAT = choice_format("auto", "float32", "float16", "bfloat16")
DTYPE_FORMAT = ValueFormat(
    _DTYPE_CHOICE_FORMAT.requirement, lambda text: _none_if_auto(_DTYPE_CHOICE_FORMAT.parse(text))
)
DEVICE_FORMAT = ValueFormat("auto, or the name of a device", _none_if_auto)
FLAG_FORMAT = ValueFormat("1, true, yes or on; or 0, false, no or off", _parse_flag)
DATABASE_URL_FORMAT = ValueFormat("a URL like postgresql://user:password@host:5432/database", _parse_database_url)
LISTEN_URL_FORMAT = ValueFormat(f"{DATABASE_URL_FORMAT.requirement}, or off", _parse_listen_url)
HTTP_URL_FORMAT = ValueFormat("a URL like http://host:9000 or https://host", _parse_url)
BUCKET_NAME_FORMAT = ValueFormat("a bucket name: 3-63 of a-z, 0-9, '.' and '-'", _parse_bucket)
FAULT_PLAN_FORMAT = ValueFormat(
    f"{' or '.join(STEP_KINDS)}, then optionally =oom, =kill or =hang, :item and :times, "
    f"like {list(STEP_KINDS)[-1]}:2:1; or several",
    _parse_fault_plan,
)
CORS_ORIGINS_FORMAT = ValueFormat("origins like https://app.example.org with commas between, or *", _parse_origins)
HOST_NAMES_FORMAT = ValueFormat("names like forge.example.org or *.example.org with commas between, or *", _parse_hosts)
CREATE_STATUS_FORMAT = ValueFormat("202 or 200", _parse_create_status)
API_KEY_FORMAT = ValueFormat("an API key like df_…, as `dreamforge keys create` shows it once", _parse_api_key)
SECONDS_FORMAT = number_format(0, 86400, exclude_low=True)
_WEIGHTS_EXAMPLE = ",".join(f"{name}:{weight:g}" for name, weight in default_weights().items())
WEIGHTS_FORMAT = ValueFormat(
    f"both steps with weights of 0 or more and a sum above 0, like {_WEIGHTS_EXAMPLE}", _parse_weights
)


class Variable(msgspec.Struct, frozen=True):
    """The environment variable of a setting: its name, an older name, and its format."""

    name: str
    value_format: ValueFormat
    description: str
    alias: str | None = None
    secret: bool = False
    default_if_invalid: bool = (
        False  # an invalid value logs a warning and is replaced by the default, instead of an error
    )

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the one with precedence first."""
        return (self.name,) if self.alias is None else (self.name, self.alias)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of all roles; `VARIABLES_BY_FIELD` describes them. The service starts with the defaults alone."""

    home: Path = Path(".dreamforge")
    db_url: str | None = None
    db_listen_url: str | None = None
    db_pooler: str | None = None
    db_connections: int = 8
    s3_endpoint: str | None = None
    s3_access_key: str | None = None
    s3_secret_key: str | None = None
    s3_bucket: str = "dreamforge"
    s3_region: str = "us-east-1"
    s3_public_endpoint: str | None = None
    presign_expires_s: int = 3600
    host: str = "127.0.0.1"
    port: int = 8001
    api_base: str = "http://127.0.0.1:8001"
    api_key: str | None = None
    create_status: int = 202
    eager: bool = False
    eager_timeout_s: float = 300.0
    max_body_bytes: int = 2**20
    max_pixels: int = 64_000_000
    logs_tail_default: int = 500
    logs_tail_max: int = 2000
    require_keys: bool = False
    allow_anonymous: bool = False
    allowed_hosts: tuple[str, ...] | None = None
    max_queued_jobs: int = 100_000
    tenant_max_queued_jobs: int | None = None
    tenant_rate: float | None = None
    cors_origins: tuple[str, ...] = ()
    compat: bool = True
    max_streams: int = 10_000
    stream_max_s: float | None = None
    sse_poll_ms: int = 500
    sse_heartbeat_s: float = 15.0
    progress_weights: dict[str, float] = msgspec.field(default_factory=default_weights)
    poll_s: float = 1.0
    lease_s: float = 15.0
    step_timeout_s: float = 3600.0
    store_patience_s: float = 300.0
    max_attempts: int = 3
    retry_base_s: float = 1.0
    retry_max_s: float = 60.0
    runner_slots: int | None = None
    fake_runner: bool = False
    model: str | None = None
    models_dir: Path | None = None
    device: str | None = None
    dtype: str | None = None
    batch_max: int = 8
    model_bytes: int | None = None
    engine_stall_s: float = 300.0
    fake_fail: str | None = None
    anchor_key: Path | None = None
    anchor_every_s: float | None = None
    log_level: str = "info"
    log_format: str = "auto"
    metrics_host: str = "127.0.0.1"
    worker_metrics_port: int = 9009
    orchestrator_metrics_port: int = 9010
    projector_metrics_port: int = 9011
    shutdown_grace_s: float = 10.0

    @property
    def slots(self) -> int:
        """How many steps a runner runs at once. By default the batch size with models, else eight for each core."""
        has_models = not self.fake_runner and find_spec("torch") is not None
        return self.runner_slots or (max(2, self.batch_max) if has_models else 8 * (os.cpu_count() or 1))

    @property
    def models_folder(self) -> Path:
        """The folder of fetched and copied models."""
        return (self.models_dir or self.home / "models").expanduser().resolve()

    def __repr__(self) -> str:
        """The settings without secrets, which must not appear in tracebacks and logs."""
        fields = (
            f"{field}={'***' if var.secret and value is not None else repr(value)}"
            for field, var in VARIABLES_BY_FIELD.items()
            for value in [getattr(self, field)]
        )
        return f"Settings({', '.join(fields)})"


_VARIABLE_LIST = (
    Variable("DF_HOME", PATH_FORMAT, "Where the embedded services keep their data."),
    Variable("DF_DB_URL", DATABASE_URL_FORMAT, "The database; unset starts an embedded one.", secret=True),
    Variable(
        "DF_DB_LISTEN_URL",
        LISTEN_URL_FORMAT,
        "A direct connection for LISTEN, past any pooler; unset: DF_DB_URL, unless DF_DB_POOLER is set; off: poll.",
        secret=True,
    ),
    Variable(
        "DF_DB_POOLER",
        choice_format("transaction"),
        "The mode of the pooler in front of the database, if there is one.",
    ),
    Variable(
        "DF_DB_CONNECTIONS",
        integer_format(2, 1000),
        "The most connections that one process opens, besides the one that listens.",
    ),
    Variable("DF_S3_ENDPOINT", HTTP_URL_FORMAT, "The object store; unset starts an embedded one.", "DF_MINIO_ENDPOINT"),
    Variable("DF_S3_ACCESS_KEY", TEXT_FORMAT, "The object store's access key.", "DF_MINIO_ACCESS_KEY", secret=True),
    Variable("DF_S3_SECRET_KEY", TEXT_FORMAT, "The object store's secret key.", "DF_MINIO_SECRET_KEY", secret=True),
    Variable("DF_S3_BUCKET", BUCKET_NAME_FORMAT, "The bucket that holds the artifacts.", "DF_MINIO_BUCKET"),
    Variable("DF_S3_REGION", TEXT_FORMAT, "The object store's region.", "DF_MINIO_REGION"),
    Variable(
        "DF_S3_PUBLIC_ENDPOINT",
        HTTP_URL_FORMAT,
        "The object store as clients reach it, for presigned URLs, under the same path; DF_S3_ENDPOINT if unset.",
        "DF_MINIO_PUBLIC_ENDPOINT",
    ),
    Variable(
        "DF_PRESIGN_EXPIRES_S", integer_format(300, 86400, clamp=True), "How long a presigned URL is valid, in seconds."
    ),
    Variable("DF_HOST", TEXT_FORMAT, "The only address that the API listens on; localhost: 127.0.0.1 and ::1."),
    Variable("DF_PORT", integer_format(0, 65535), "The port that the API listens on; 0 takes a free one."),
    Variable("DF_API_BASE", HTTP_URL_FORMAT, "Where `dreamforge jobs` finds the API; DF_HOST and DF_PORT if unset."),
    Variable(
        "DF_API_KEY",
        API_KEY_FORMAT,
        "The API key that `dreamforge jobs` sends, if the service requires one.",
        secret=True,
    ),
    Variable(
        "DF_CREATE_STATUS",
        CREATE_STATUS_FORMAT,
        "The status of an accepted job; 200 is for clients of the old service.",
    ),
    Variable(
        "DF_EAGER", FLAG_FORMAT, "Answer the submission of a job when the job has ended; for tests.", "DF_CELERY_EAGER"
    ),
    Variable("DF_EAGER_TIMEOUT_S", SECONDS_FORMAT, "How long DF_EAGER waits for a job's end, in seconds."),
    Variable("DF_MAX_BODY_BYTES", integer_format(1024, 2**30), "The largest request body."),
    Variable("DF_MAX_PIXELS", integer_format(256, 2**40), "The largest image that a job may write, in pixels."),
    Variable(
        "DF_LOGS_TAIL_DEFAULT",
        integer_format(1, 100_000),
        "How many lines `/logs` returns without `tail`; DF_LOGS_TAIL_MAX limits it.",
    ),
    Variable("DF_LOGS_TAIL_MAX", integer_format(1, 100_000), "The largest `tail` that `/logs` accepts."),
    Variable("DF_REQUIRE_KEYS", FLAG_FORMAT, "Require an API key for every request under /v1."),
    Variable(
        "DF_ALLOW_ANONYMOUS",
        FLAG_FORMAT,
        "Allow an address other than loopback without DF_REQUIRE_KEYS: every client has all rights.",
    ),
    Variable(
        "DF_ALLOWED_HOSTS",
        HOST_NAMES_FORMAT,
        "The host names that every role accepts, besides addresses, localhost and the names in DF_HOST and "
        "DF_METRICS_HOST; unset with DF_REQUIRE_KEYS: any.",
    ),
    Variable(
        "DF_MAX_QUEUED_JOBS",
        integer_format(1, 10**9),
        "The most commands in the queues; new jobs above it are rejected (503).",
    ),
    Variable(
        "DF_TENANT_MAX_QUEUED_JOBS",
        integer_format(1, 10**9),
        "The most open jobs of one tenant; its new jobs above it are rejected (429); unset: no limit.",
    ),
    Variable(
        "DF_TENANT_RATE",
        number_format(0, 10**6, exclude_low=True),
        "The most requests per second of one tenant to one process; more are rejected (429); unset: no limit.",
    ),
    Variable(
        "DF_CORS_ORIGINS",
        CORS_ORIGINS_FORMAT,
        "The origins whose pages may call the API from a browser; unset allows none.",
    ),
    Variable("DF_COMPAT", FLAG_FORMAT, "Serve the APIs of other services: OpenAI Images at /openai/v1."),
    Variable(
        "DF_MAX_STREAMS",
        integer_format(1, 1_000_000),
        "The most live streams of one process; further ones are closed with a `retry` time.",
    ),
    Variable(
        "DF_STREAM_MAX_S",
        SECONDS_FORMAT,
        "How long a live stream lasts before its client must reconnect, in seconds; unset: no limit.",
    ),
    Variable(
        "DF_SSE_POLL_MS",
        integer_format(1, 60_000),
        "The longest delay of a stream after a lost notification, in milliseconds.",
    ),
    Variable("DF_SSE_HEARTBEAT_S", SECONDS_FORMAT, "The longest silence on a stream, in seconds."),
    Variable("DF_PROGRESS_WEIGHTS", WEIGHTS_FORMAT, "Each step's share of a job's progress.", default_if_invalid=True),
    Variable(
        "DF_POLL_S", SECONDS_FORMAT, "How long a subscription waits for a notification before it polls, in seconds."
    ),
    Variable(
        "DF_LEASE_S",
        number_format(3, 86400, exclude_low=True),
        "The lease of a claimed command, in seconds: the longest time from a runner's death to the next attempt.",
    ),
    Variable(
        "DF_STEP_TIMEOUT_S",
        SECONDS_FORMAT,
        "The longest time of one attempt of a step, in seconds; the next attempt keeps its artifacts.",
    ),
    Variable(
        "DF_STORE_PATIENCE_S",
        number_format(0, 86400),
        "How long an attempt waits for an unavailable object store before it fails, in seconds.",
    ),
    Variable(
        "DF_MAX_ATTEMPTS", integer_format(1, 10_000), "Attempts in a row without a new artifact before a step fails."
    ),
    Variable(
        "DF_RETRY_BASE_S",
        number_format(0, 86400),
        "The pause before a step's first retry, in seconds; it doubles each time.",
    ),
    Variable("DF_RETRY_MAX_S", number_format(0, 86400), "The longest pause before a retry, in seconds."),
    Variable(
        "DF_RUNNER_SLOTS",
        integer_format(1, 1024),
        "How many steps one runner runs at once; unset: DF_BATCH_MAX, or 8 for each core without models.",
    ),
    Variable("DF_FAKE_RUNNER", FLAG_FORMAT, "Use the fake engine instead of models."),
    Variable(
        "DF_MODEL",
        TEXT_FORMAT,
        "The default model: a folder, a .safetensors file, or a hub repository; unset: the first registered and "
        "enabled model, or the fake engine if there is none.",
    ),
    Variable(
        "DF_MODELS_DIR",
        PATH_FORMAT,
        "The folder of models that `dreamforge models add` fetches or copies; unset: `models` in DF_HOME.",
    ),
    Variable(
        "DF_DEVICE", DEVICE_FORMAT, "The device that runs models, such as cpu, cuda or cuda:1; auto: the best one."
    ),
    Variable("DF_DTYPE", DTYPE_FORMAT, "The precision of models; auto: the best one for the device."),
    Variable("DF_BATCH_MAX", integer_format(1, 64), "The most images that a runner renders at once."),
    Variable(
        "DF_MODEL_BYTES",
        integer_format(0, 2**50),
        "The most bytes of open models besides the one in use; unset: half of the device's memory.",
    ),
    Variable(
        "DF_ENGINE_STALL_S",
        SECONDS_FORMAT,
        "How long an engine process may send no message while it renders before it is killed, in seconds; opening a "
        "model may take an hour.",
    ),
    Variable("DF_FAKE_FAIL", FAULT_PLAN_FORMAT, "Make the fake runner fail, for tests."),
    Variable("DF_ANCHOR_KEY", PATH_FORMAT, "The file of the key that signs anchors; see `dreamforge audit key`."),
    Variable(
        "DF_ANCHOR_EVERY_S", SECONDS_FORMAT, "How often the orchestrator signs an anchor, in seconds; unset: never."
    ),
    Variable("DF_LOG_LEVEL", choice_format("debug", "info", "warning", "error"), "The lowest level of log lines."),
    Variable(
        "DF_LOG_FORMAT",
        choice_format("auto", "json", "console"),
        "The format of log lines; auto is console on a terminal, else json.",
    ),
    Variable(
        "DF_METRICS_HOST",
        TEXT_FORMAT,
        "The address on which roles without an API serve /metrics, /healthz and /readyz.",
    ),
    Variable(
        "DF_WORKER_METRICS_PORT",
        integer_format(0, 65535),
        "The runner's port on DF_METRICS_HOST; if it is taken, a free one.",
    ),
    Variable(
        "DF_ORCHESTRATOR_METRICS_PORT",
        integer_format(0, 65535),
        "The orchestrator's port on DF_METRICS_HOST, likewise.",
    ),
    Variable(
        "DF_PROJECTOR_METRICS_PORT", integer_format(0, 65535), "The projector's port on DF_METRICS_HOST, likewise."
    ),
    Variable(
        "DF_SHUTDOWN_GRACE_S",
        number_format(0, 3600),
        "How long a stopping process waits for its running work, in seconds.",
    ),
)
VARIABLES_BY_FIELD = {var.name.removeprefix(_VARIABLE_PREFIX).lower(): var for var in _VARIABLE_LIST}
"""The variables by the field of `Settings` that each one sets."""


def load_settings(environ: Mapping[str, str], dotenv: Path | None = None) -> tuple[Settings, list[str]]:
    """The settings from an environment and a .env file, and warnings. The environment has precedence."""
    texts = _strip_and_drop_empty(_read_dotenv(dotenv)) | _strip_and_drop_empty(environ)
    values: dict[str, Any] = {}
    warnings = _unknown_setting_warnings(texts)
    for field, var in VARIABLES_BY_FIELD.items():
        name = next((name for name in var.names if name in texts), None)
        if name is None:
            continue
        try:
            values[field] = var.value_format.parse(texts[name])
        except ValueError:
            message = _invalid_value_message(name, texts[name], var)
            if not var.default_if_invalid:
                raise SettingsError(message) from None
            warnings.append(f"{message} The default is used.")
    if values.get("db_url") and not values.get("db_pooler"):  # LISTEN does not work through a pooler
        values.setdefault("db_listen_url", values["db_url"])
    values["db_listen_url"] = values.get("db_listen_url") or None
    settings = Settings(**values)
    _expect_same_s3_path(settings)
    if "api_base" not in values:
        settings = msgspec.structs.replace(settings, api_base=_loopback_url(settings.host, settings.port))
    return settings, warnings


def _expect_same_s3_path(settings: Settings) -> None:
    """Check that both S3 endpoints have the same path. The signature of a presigned URL includes the path."""
    public = settings.s3_public_endpoint
    if public is not None and urlsplit(public).path != urlsplit(settings.s3_endpoint or "").path:
        raise SettingsError(
            f"DF_S3_PUBLIC_ENDPOINT is {public!r}, with another path than DF_S3_ENDPOINT: URLs are signed with the "
            "path that the store sees, and a proxy that changes it breaks them. Give the store a name of its own."
        )


def load_process_settings(dotenv: Path | None = None) -> tuple[Settings, list[str]]:
    """The settings of this process, and warnings about them."""
    return load_settings(os.environ, dotenv)


def unconfigured_environ() -> dict[str, str]:
    """This process's environment without settings and AWS variables, for a child process with defaults."""
    return {name: value for name, value in os.environ.items() if not name.startswith((_VARIABLE_PREFIX, "AWS_"))}


def _strip_and_drop_empty(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value.strip() for name, value in environ.items() if value.strip()}


def _read_dotenv(path: Path | None) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    values: dict[str, str] = {}
    for position, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _DOTENV_LINE_PATTERN.fullmatch(text)
        if match is None:
            raise SettingsError(f"{path}, line {position}: this is no NAME=value.")
        values[match["name"]] = _dotenv_value(match)
    return values


def _dotenv_value(match: re.Match[str]) -> str:
    if match["double"] is not None:
        return re.sub(r"\\(.)", r"\1", match["double"])
    return match["bare"] if match["single"] is None else match["single"]


def _unknown_setting_warnings(names: Iterable[str]) -> list[str]:
    known = [name for var in VARIABLES_BY_FIELD.values() for name in var.names]
    warnings = []
    for name in sorted(names):
        if not name.startswith(_VARIABLE_PREFIX) or name.startswith(_TEST_VARIABLE_PREFIX) or name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        warnings.append(f"{name} is no setting of this release{f'; is {close[0]} meant?' if close else '.'}")
    return warnings


def _invalid_value_message(name: str, text: str, var: Variable) -> str:
    value = "has an invalid value" if var.secret else f"is {text!r}"
    return f"{name} {value}; it must be {var.value_format.requirement}."


def _loopback_url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
