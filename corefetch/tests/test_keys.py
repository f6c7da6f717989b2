"""What the names of cores say."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest
from corefetch import keys

TIME = datetime(2026, 11, 29, 18, 0, 0, tzinfo=timezone.utc)
END = "7775.20261129T180000Z.0f3a9c27d1b4"


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ("node-7.shop-1.java.C2_CompilerThre", ("node-7", "shop-1", "java", "C2_CompilerThre")),
        ("node-7.shop-1.shop.shop", ("node-7", "shop-1", "shop", "shop")),
        # Dots in any part: program and thread are mostly alike.
        ("node-7.example.org.shop-1.shop.shop", ("node-7.example.org", "shop-1", "shop", "shop")),
        ("node-7.shop-1.python3.11.python3.11", ("node-7", "shop-1", "python3.11", "python3.11")),
        (
            "a.b.unit-cron.very-long-name-of-1.2.very-long-name-",
            ("a.b", "unit-cron", "very-long-name-of-1.2", "very-long-name-"),
        ),
        # Not told apart for sure.
        ("node-7.example.org.shop-1.java.worker", ("node-7.example.org", "shop-1", "java", "worker")),
    ],
)
def test_a_key_is_taken_apart(names: str, parts: tuple[str, ...]) -> None:
    key = keys.read(f"prefix/{names}.{END}")
    assert (key.node, key.place, key.program, key.thread) == parts
    assert (key.pid, key.time, key.id) == (7775, TIME, "0f3a9c27d1b4")
    assert key.vague == (names.count(".") != 3)


def test_the_key_of_an_old_uploader_is_taken_apart() -> None:
    key = keys.read("shop-1.example/java.17.7775.1000.100.1795975200")
    assert (key.place, key.program, key.pid, key.uid, key.gid) == ("shop-1.example", "java.17", 7775, 1000, 100)
    assert key.time == TIME


@pytest.mark.parametrize(
    "stem", ["core", "a/b", f"x.{END}", "a.b.c.d.1.20261399T180000Z.0f3a9c27d1b4", "", "a.1.2.3.99999999999"]
)
def test_any_other_name_is_no_error(stem: str) -> None:
    assert keys.read(stem).pid in (None, 7775, 1)


@pytest.mark.parametrize(
    ("path", "stem", "packed", "truncated"),
    [
        ("p/k.core", "p/k", "", False),
        ("p/k.core.zst", "p/k", ".zst", False),
        ("k.core.gz", "k", ".gz", False),
        ("k.core.zst.truncated", "k", ".zst", True),
        ("k.core.truncated", "k", "", True),
    ],
)
def test_the_ending_says_how_a_core_lies_there(path: str, stem: str, packed: str, truncated: bool) -> None:
    name = keys.name_of(path)
    assert name is not None
    assert (name.stem, name.packed, name.truncated) == (stem, packed, truncated)


@pytest.mark.parametrize("path", ["k.json", "k.core.zst.part", "k.core.new", ".core", "p/.core", "core", "k.core/x"])
def test_what_is_no_core_is_none(path: str) -> None:
    assert keys.name_of(path) is None


def test_a_key_of_very_many_dots_is_read_soon() -> None:
    begin = time.process_time()
    for _ in range(50):
        assert keys.read(f"{'a.' * 480}z.17.20260101T000000Z.0123456789ab").thread == "z"
    assert time.process_time() - begin < 1
