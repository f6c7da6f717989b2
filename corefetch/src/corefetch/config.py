"""The settings: words of the command line first, then the environment, then the configuration file."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corefetch.clients import Options, open_store
from corefetch.errors import Exit, Failure
from corefetch.stores import Store
from corefetch.text import plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COLLECTED = "rollout/cores"  # Where playbooks/collect.yml puts cores.
GIB = 1 << 30
MOST_GIB = 1 << 33  # No disk is larger.
WORDS = {"from", "endpoint", "region", "engine", "debuginfod", "symbols", "sysroot", "cache", "cache_max_gib", "stores"}


@dataclass
class Settings:
    """What counts."""

    source: str = ""
    options: Options = field(default_factory=Options)
    engine: str = ""
    debuginfod: list[str] = field(default_factory=list)
    symbols: list[Path] = field(default_factory=list)
    sysroot: Path | None = None
    cache: Path = Path()
    cache_max: int = 20 * GIB
    stores: dict[str, str] = field(default_factory=dict)

    def named(self, source: str | None) -> str:
        """Return the store that ``--from`` or a setting names, "" if none does."""
        return source or self.source or (f"./{COLLECTED}" if Path(COLLECTED).is_dir() else "")

    def store(self, source: str | None) -> Store:
        """Open the store that ``--from`` or a setting names. Raises Failure."""
        chosen = self.named(source)
        if not chosen:
            raise Failure(
                "no store",
                "name one by --from s3://BUCKET/PREFIX (gs://, az://, file:///), or by COREFETCH_FROM",
                Exit.USAGE,
            )
        try:
            return open_store(self.stores.get(chosen, chosen), self.options)
        except Failure as failure:
            if failure.code != Exit.USAGE or "/" in chosen or chosen in self.stores:
                raise
            names = f"has {', '.join(map(plain, self.stores))}" if self.stores else "has no [stores]"
            raise Failure(f"{failure}, or a name of {path_of_file()}, which {names}", "", Exit.USAGE) from None


def path_of_file() -> Path:
    """Return where the configuration file is."""
    if named := os.environ.get("COREFETCH_CONFIG"):
        return Path(named).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "corefetch" / "config.toml"


def load() -> Settings:
    """Return the settings. Raises Failure."""
    path = path_of_file()
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if "COREFETCH_CONFIG" in os.environ:
            raise Failure(f"{path}: no such file", "correct COREFETCH_CONFIG", Exit.USAGE) from None
        known = {}
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: {plain(str(error))}", "correct this file", Exit.USAGE) from None
    if strange := sorted(set(known) - WORDS):
        raise Failure(
            f"{path}: no such setting: {plain(strange[0])}", f"there are {', '.join(sorted(WORDS))}", Exit.USAGE
        )

    def word(name: str, variable: str = "") -> str:
        value = (os.environ.get(variable) if variable else None) or known.get(name, "")
        if not isinstance(value, str):
            raise _wrong(path, name, "a text")
        return value

    sysroot = word("sysroot")
    room = known.get("cache_max_gib", 20)
    if isinstance(room, bool) or not isinstance(room, (int, float)) or not 0 <= room <= MOST_GIB:
        raise _wrong(path, "cache_max_gib", f"a number from 0 to {MOST_GIB}")
    cache = word("cache", "COREFETCH_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/corefetch"
    return Settings(
        source=word("from", "COREFETCH_FROM"),
        options=Options(word("endpoint"), word("region")),
        engine=word("engine", "COREFETCH_ENGINE"),
        debuginfod=_many(path, known, "debuginfod", os.environ.get("DEBUGINFOD_URLS", "").split()),
        symbols=[Path(one).expanduser() for one in _many(path, known, "symbols", [])],
        sysroot=Path(sysroot).expanduser() if sysroot else None,
        cache=Path(cache).expanduser(),
        cache_max=int(room * GIB),
        stores=_named(path, known.get("stores", {})),
    )


def _many(path: Path, known: dict[str, Any], name: str, first: list[str]) -> list[str]:
    """Return a setting that may be one text or several, after what the environment says."""
    value = known.get(name, [])
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _wrong(path, name, "a list of texts")
    return first or value


def _named(path: Path, value: Any) -> dict[str, str]:
    """Return the names that the file gives to stores."""
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise _wrong(path, "stores", "a table of names and URLs")
    return dict(value)


def _wrong(path: Path, name: str, kind: str) -> Failure:
    """Return the failure of a setting of the wrong kind."""
    return Failure(f"{path}: {name} is not {kind}", "correct this file", Exit.USAGE)
