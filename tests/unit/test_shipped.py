"""What the collection ships, by its text alone; tests/collection asks ansible-test about the rest."""

from __future__ import annotations

import ast

from support.project import PROJECT, tracked


def test_no_name_is_one_that_pylint_of_ansible_test_disallows() -> None:
    """The one of its findings that comes back easily, as everybody calls what is not needed _."""
    shipped = [name for name in tracked() if name.startswith(("helper/", "plugins/")) and name.endswith(".py")]
    assert len(shipped) > 30
    found = [
        f"{name}:{node.lineno}"
        for name in [*shipped, "helper/docker_core_helper"]
        for node in ast.walk(ast.parse((PROJECT / name).read_text()))
        if isinstance(node, ast.Name) and node.id in ("_", "foo", "bar", "baz") and isinstance(node.ctx, ast.Store)
    ]
    assert found == []
