"""Opens a store by its URL, with the credentials that the tools of its maker take.

The URL is ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX``, ``az://CONTAINER/PREFIX`` (or ``azblob://``), or ``file:///DIRECTORY``,
which may also be what ``playbooks/collect.yml`` has brought.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from corefetch.errors import Exit, Failure
from corefetch.stores import Bucket, Directory, Store, explain
from corefetch.text import plain

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "azblob": "az", "file": "file"}


@dataclass(frozen=True)
class Options:
    """What leads to a store besides its URL."""

    endpoint: str = ""
    region: str = ""


def open_store(url: str, options: Options | None = None) -> Store:
    """Open a store by its URL. Raises Failure."""
    options = options or Options()
    if "://" not in url:
        if url.startswith(("/", ".", "~")) or os.path.isdir(url):
            return Directory(Path(url).expanduser())
        raise Failure(
            f"no store: {plain(url)}", "say s3://BUCKET, gs://BUCKET, az://CONTAINER or file:///DIRECTORY", Exit.USAGE
        )
    scheme, _, rest = url.partition("://")
    kind = SCHEMES.get(scheme.lower())
    if kind == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise Failure(f"no directory of this machine: {plain(url)}", "say file:///DIRECTORY", Exit.USAGE)
        return Directory(Path(unquote(parts.path)))
    bucket, _, prefix = rest.partition("/")
    if kind is None or not bucket:
        raise Failure(
            f"no store: {plain(url)}", "say s3://BUCKET, gs://BUCKET, az://CONTAINER or file:///DIRECTORY", Exit.USAGE
        )
    try:
        store = _CLIENTS[kind](bucket, prefix.strip("/") or None, options)
    except Exception as error:
        raise explain(f"{kind}://{rest}", error) from None
    return Bucket(f"{kind}://{rest.rstrip('/')}", store)


# Seconds; a store that hangs is reported soon, and a core of many gigabytes has time as long as it moves on.
CLIENT: dict[str, Any] = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "1d"}
RETRY: dict[str, Any] = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


def _client(endpoint: str) -> dict[str, Any]:
    """Return the options of the HTTP client: without encryption only where the endpoint says so."""
    return {**CLIENT, "allow_http": True} if endpoint.startswith("http://") else dict(CLIENT)


def _s3(bucket: str, prefix: str | None, options: Options) -> ObjectStore:
    """Open a bucket of S3. Its library knows the environment, and not the files of the AWS tools."""
    from obstore.store import S3Store

    endpoint = options.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    config: dict[str, Any] = {}
    if endpoint:
        config["endpoint"] = endpoint
    profile = {} if "AWS_ACCESS_KEY_ID" in os.environ and "AWS_PROFILE" not in os.environ else aws_profile()
    # A role, a web identity or an instance may have credentials, too: the library asks for them.
    for name in ("access_key_id", "secret_access_key", "session_token"):
        if profile.get(f"aws_{name}"):
            config[name] = profile[f"aws_{name}"]
    region = (
        options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or profile.get("region")
    )
    config["region"] = region or "us-east-1"
    return S3Store(bucket, prefix=prefix, config=config, client_options=_client(endpoint), retry_config=RETRY)  # type: ignore[arg-type]


def aws_profile() -> dict[str, str]:
    """Return what ~/.aws/credentials and ~/.aws/config have of the profile that counts."""
    name = os.environ.get("AWS_PROFILE", "default")
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(Path(os.environ.get(variable) or file).expanduser(), encoding="utf-8")
        except (OSError, configparser.Error, UnicodeError):
            continue
        if parser.has_section(section):
            found.update(parser.items(section))
    return found


def _gs(bucket: str, prefix: str | None, options: Options) -> ObjectStore:
    """Open a bucket of Google Cloud Storage."""
    from obstore.store import GCSStore

    endpoint = options.endpoint or os.environ.get("STORAGE_EMULATOR_HOST", "")
    config: dict[str, Any] = {}
    if endpoint:
        endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
        config["base_url"] = endpoint
        if endpoint.startswith("http://"):
            # An emulator: it asks for no credentials, and no cloud shall be asked for any.
            key = {
                "gcs_base_url": endpoint,
                "disable_oauth": True,
                "client_email": "",
                "private_key": "",
                "private_key_id": "",
            }
            config = {"service_account_key": json.dumps(key)}
    return GCSStore(bucket, prefix=prefix, config=config, client_options=_client(endpoint), retry_config=RETRY)  # type: ignore[arg-type]


def _az(bucket: str, prefix: str | None, options: Options) -> ObjectStore:
    """Open a container of Azure."""
    from obstore.store import AzureStore

    endpoint = options.endpoint or os.environ.get("AZURE_STORAGE_ENDPOINT", "")
    config: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    keyed = any(
        name.startswith("AZURE_") and ("KEY" in name or "SAS" in name or "CLIENT" in name) for name in os.environ
    )
    if not keyed and shutil.which("az"):
        config["use_azure_cli"] = True
    return AzureStore(bucket, prefix=prefix, config=config, client_options=_client(endpoint), retry_config=RETRY)  # type: ignore[arg-type]


_CLIENTS = {"s3": _s3, "gs": _gs, "az": _az}
