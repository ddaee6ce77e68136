"""The clients of an S3 server: obstore for objects and presigned URLs, boto3 for the bucket.

Both ignore the AWS_* variables and profiles of this machine, and proxies where the server is on loopback.
"""

import ipaddress
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import boto3
import msgspec
from botocore.config import Config
from botocore.httpsession import where as ca_bundle_path
from botocore.session import Session
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import S3Config as S3Options

CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 10
MAX_TRIES = 2

_NO_LIMIT = timedelta(days=1)
_environ_lock = threading.Lock()


class S3Config(msgspec.Struct, frozen=True):
    """The object store's address and credentials. endpoint: None is AWS. public_endpoint: for presigned URLs."""

    endpoint: str | None
    access_key: str
    secret_key: str
    bucket: str = "dreamforge"
    region: str = "us-east-1"
    public_endpoint: str | None = None

    def __repr__(self) -> str:
        """The configuration without its keys, which must not appear in tracebacks and logs."""
        return f"S3Config(endpoint={self.endpoint!r}, bucket={self.bucket!r}, region={self.region!r}, keys=***)"


class TransferClients(NamedTuple):
    """The obstore clients of a bucket.

    reader: fails after `READ_TIMEOUT_S` seconds without a byte. writer: has no such limit, because obstore would count
    the time that it takes to send a body; the caller limits it. signer: for the public endpoint.
    """

    reader: S3Store
    writer: S3Store
    signer: S3Store


def open_transfer_clients(config: S3Config) -> TransferClients:
    """Create the obstore clients. It takes about 20 ms, and 100 ms for an HTTPS endpoint."""
    reader = _open_s3_store(config, config.endpoint, timedelta(seconds=READ_TIMEOUT_S))
    writer = _open_s3_store(config, config.endpoint, _NO_LIMIT)
    public = config.public_endpoint
    signer = reader if public is None else _open_s3_store(config, public, _NO_LIMIT)
    return TransferClients(reader, writer, signer)


def open_boto3_client(config: S3Config, connections: int) -> Any:
    """Create a boto3 client. It takes about 100 ms."""
    session_vars = {
        name: (None, None, default, kind) for name, (_, _, default, kind) in Session.SESSION_VARIABLES.items()
    }
    for file in ("config_file", "credentials_file"):
        session_vars[file] = (None, None, os.devnull, None)
    session = boto3.session.Session(botocore_session=Session(session_vars=session_vars))
    return session.client(
        "s3",
        endpoint_url=config.endpoint,
        region_name=config.region,
        aws_access_key_id=config.access_key,
        aws_secret_access_key=config.secret_key,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path", "us_east_1_regional_endpoint": "regional"},
            # Newer boto3 sends checksum trailers by default; several S3 servers reject them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            ignore_configured_endpoint_urls=True,
            proxies={} if _is_loopback(config.endpoint) else None,
            retries={"mode": "standard", "total_max_attempts": MAX_TRIES},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=connections,
            tcp_keepalive=True,
        ),
    )


def _open_s3_store(config: S3Config, endpoint: str | None, read_timeout: timedelta) -> S3Store:
    retries: RetryConfig = {
        "max_retries": MAX_TRIES - 1,
        # Counted from the first request: it must not end a slow upload's second try.
        "retry_timeout": timedelta(minutes=4),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
    }
    options: S3Options = {
        "region": config.region,
        "access_key_id": config.access_key,
        "secret_access_key": config.secret_key,
    }
    if endpoint is not None:
        options["endpoint"] = endpoint.rstrip("/")
    with _without_aws_variables():
        return S3Store(
            config.bucket,
            config=options,
            client_options=_client_options(endpoint, read_timeout),
            retry_config=retries,
        )


def _client_options(endpoint: str | None, read_timeout: timedelta) -> "ClientConfig":
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": read_timeout,
        # The default limits a whole request, with its body, to 30 s.
        "timeout": _NO_LIMIT,
    }
    parts = urlsplit(endpoint or "https:")
    if parts.scheme == "http":
        options["allow_http"] = True
    else:
        # obstore trusts the system's authorities, of which a slim container image has none; these are boto3's.
        options["root_certificate"] = Path(ca_bundle_path()).read_bytes()
    if _is_loopback(endpoint):
        # There is no option for "no proxy", but one that is named here replaces those of the environment.
        options["proxy_url"] = "http://127.0.0.1:9"
        options["proxy_excludes"] = parts.hostname or ""
    return options


@contextmanager
def _without_aws_variables() -> Iterator[None]:
    """Hide the AWS_* variables: obstore reads them all, and several of them have no option that overrides them.

    A process that another thread starts meanwhile does not inherit them.
    """
    environ = os.environ  # noqa: TID251  # obstore reads it, for nothing that the service asks of it
    with _environ_lock:
        hidden = {name: environ.pop(name) for name in list(environ) if name.startswith("AWS_")}
        try:
            yield
        finally:
            environ.update(hidden)


def _is_loopback(endpoint: str | None) -> bool:
    host = urlsplit(endpoint or "").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
