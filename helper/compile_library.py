"""Compiles the helper's library for one Python, because the kernel starts a new helper at each crash.

The Python that will run the helper runs this program, once at an installation and never at a crash. The Ansible module
core_helper_files sends this program's text along with the library. ::

    compile_library.py check LIBRARY           print the version of this Python, and what is not compiled for it
    compile_library.py compile LIBRARY FINAL   compile the files of LIBRARY under the names that they will have in FINAL

A Python that cannot run the helper ends with the reason on standard error. So that even an old Python can say the reason, this
file has no f-strings and no annotation that Python 3.5 cannot read.

The time of a source file may change, as when a backup is restored, but never its content: a version of the library stays as it
is. So the compiled files hold a hash of their source that Python does not check at run time. They hold no docstrings, which
would cost time at every crash. Still they have the usual names: Python finds them without an option.

One more file for each module of START, a bundle, holds that module and those that it imports at its top level, each after those
that it imports itself, unless an earlier bundle has it. core_helper/__init__.py loads the bundles that a crash needs.
"""

import ast
import importlib
import importlib.util
import marshal
import os
import py_compile
import sys

PACKAGE = "core_helper"
START = ("main", "deliver", "record")
# What the helper imports and some builds of Python lack.
NEEDED = ("_ctypes", "_json", "_socket", "_struct", "fcntl", "select")


def refuse_unusable_python() -> None:
    """End the program if this Python cannot run the helper."""
    if sys.version_info < (3, 8):  # noqa: UP036 (nobody knows yet which Python this is)
        version = ".".join(map(str, sys.version_info[:2]))
        sys.exit("is Python " + version + ", and the helper needs 3.8 or newer")
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            sys.exit("lacks a module that the helper needs: " + str(error))


def header(sources: "list[str]") -> bytes:
    """Return how a compiled file begins: this Python's number, the word that the hash is not checked, and the hash."""
    content = b""
    for source in sources:
        with open(source, "rb") as file:
            content += file.read()
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(content)


def is_compiled(path: str, sources: "list[str]") -> bool:
    """Return whether a file holds these sources, compiled for this Python, and is whole."""
    try:
        with open(path, "rb") as file:
            return file.read(16) == header(sources) and bool(marshal.load(file))
    except (OSError, EOFError, TypeError, ValueError):
        return False


def sources_of(library: str) -> "list[str]":
    """Return the source files of a library, none if there is no such directory."""
    names = sorted(os.listdir(library)) if os.path.isdir(library) else []
    return [os.path.join(library, name) for name in names if name.endswith(".py")]


def bundles_of(library: str) -> "list[tuple[str, str]]":
    """Return the module with which each bundle of a library starts, and the path of the bundle."""
    cache = os.path.join(library, "__pycache__")
    found = [start for start in START if os.path.exists(os.path.join(library, start + ".py"))]
    return [
        (start, os.path.join(cache, "bundle." + start + "." + str(sys.implementation.cache_tag))) for start in found
    ]


def uncompiled(library: str) -> "list[str]":
    """Return the files of a library that are not compiled for this Python; the bundles are among them."""
    sources = sources_of(library)
    wrong = [source for source in sources if not is_compiled(importlib.util.cache_from_source(source), [source])]
    return wrong + [path for _start, path in bundles_of(library) if not is_compiled(path, sources)]


def imported_by(tree: ast.Module) -> "list[str]":
    """Return the modules of the library that a module imports at its top level, in their order."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            names += [imported.name for imported in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE + "."):
            names.append((node.module or "").partition(".")[2])
    return names


def add_to_bundle(bundle: "list[tuple[str, object]]", name: str, library: str, final: str, done: "set[str]") -> None:
    """Add a module to the bundle, after those that it imports, unless that is ``done``."""
    source = os.path.join(library, name + ".py")
    if not os.path.exists(source) or name in done:
        return
    done.add(name)
    with open(source, "rb") as file:
        tree = ast.parse(file.read())
    for imported in imported_by(tree):
        add_to_bundle(bundle, imported, library, final, done)
    bundle.append((name, compile(tree, os.path.join(final, name + ".py"), "exec", dont_inherit=True, optimize=2)))


def compile_library(library: str, final: str) -> None:
    """Compile each file of a library, and put each bundle next to them in one step."""
    for source in sources_of(library):
        py_compile.compile(
            source,
            importlib.util.cache_from_source(source),
            os.path.join(final, os.path.basename(source)),
            doraise=True,
            optimize=2,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    done = set()  # type: set[str]
    for start, path in bundles_of(library):
        bundle = []  # type: list[tuple[str, object]]
        add_to_bundle(bundle, start, library, final, done)
        with open(path + ".new", "wb") as file:
            file.write(header(sources_of(library)) + marshal.dumps(bundle))
            # Whatever the umask and a default ACL of the directory are.
            os.fchmod(file.fileno(), 0o644)
        os.replace(path + ".new", path)


def main(words: "list[str]") -> None:
    """Run the program: ``words`` are its arguments."""
    refuse_unusable_python()
    if words[:1] == ["check"] and len(words) == 2:
        print(".".join(map(str, sys.version_info[:3])))
        print(*[os.path.basename(path) for path in uncompiled(words[1])])
    elif words[:1] == ["compile"] and len(words) == 3:
        compile_library(words[1], words[2])
    else:
        sys.exit("compile_library.py: expected check LIBRARY, or compile LIBRARY FINAL: " + repr(words))


if __name__ == "__main__":
    main(sys.argv[1:])
