"""Words: split by the rules of a shell, filled in for each crash, shown in messages."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

SPECIFIERS = b"PpugstehE"
# For names of files and objects: all that is nowhere special stays, everything else becomes _.
PLAIN = bytes(byte if byte < 128 and (chr(byte).isalnum() or byte in b"._-") else ord("_") for byte in range(256))


class WordError(Exception):
    """The text cannot be used; the message says what is wrong with it."""


def encode(text: str) -> bytes:
    """Return the bytes from which Python has decoded ``text``: a word of the command line, or a host name."""
    return text.encode(sys.getfilesystemencoding(), "surrogateescape")


def shown(text: bytes) -> str:
    """Return ``text`` in quotes for a message."""
    return repr(text.decode("utf-8", "backslashreplace"))


def harmless(text: bytes, longest: int) -> str:
    """Return ``text``, which a container may have chosen, as a part of a name: of A-Za-z0-9._- only, and never empty.

    No directory, no option and no hidden file: it begins with neither ``.`` nor ``-``.
    """
    name = text[:longest].translate(PLAIN).decode() or "unknown"
    return "_" + name[1:] if name[0] in ".-" else name


def is_variable(name: bytes) -> bool:
    """Tell whether ``name`` may be that of a variable of the environment."""
    return name.replace(b"_", b"a").isalnum() and not name[:1].isdigit()


def unquote(value: bytes) -> bytes:
    """Return ``value`` as a shell assignment would have it: one pair of quotes around the whole is removed."""
    quote = value[:1]
    if quote in (b'"', b"'"):
        end, inner = _closing_quote(value)
        if end == len(value) or value[end:].lstrip().startswith(b"#"):
            return inner
    return value


def _closing_quote(value: bytes) -> "tuple[int, bytes]":
    """Return the position after the closing quote of what ``value`` begins with, and what stands between."""
    quote = value[0]
    inner = bytearray()
    position = 1
    while position < len(value):
        byte = value[position]
        if byte == quote:
            return position + 1, bytes(inner)
        if byte == ord("\\") and quote == ord('"') and value[position + 1 : position + 2] in (b'"', b"\\", b"$", b"`"):
            position += 1
            byte = value[position]
        inner.append(byte)
        position += 1
    raise WordError(f"quote {chr(quote)} is not closed")


def split_words(text: bytes) -> "list[bytes]":
    """Split ``text`` into words by the quoting rules of sh(1); ``#`` at the start of a word begins a comment.

    Raises WordError for a quote that is not closed. The library's shlex would cost more than the whole helper.
    """
    words = []
    word: bytearray | None = None
    position = 0
    while position < len(text):
        byte = text[position : position + 1]
        if byte in b" \t":
            if word is not None:
                words.append(bytes(word))
            word = None
        elif byte == b"#" and word is None:
            break
        else:
            word = bytearray() if word is None else word
            if byte in b"\"'":
                length, inner = _closing_quote(text[position:])
                word += inner
                position += length - 1
            elif byte == b"\\" and position + 1 < len(text):
                position += 1
                word += text[position : position + 1]
            else:
                word += byte
        position += 1
    if word is not None:
        words.append(bytes(word))
    return words


def expand(word: bytes, values: "dict[str, bytes]", variable: "Callable[[bytes, bytes], bytes] | None" = None) -> bytes:
    """Replace each %X of ``word`` by ``values["X"]``, empty where that is not known, and %% by %.

    Where there is a function ``variable``, %{NAME} and %{NAME#PREFIX} stand for what it makes of NAME and PREFIX. Raises
    WordError for a specifier that the helper does not have.
    """
    parts = word.split(b"%")
    expanded = [parts[0]]
    position = 1
    while position < len(parts):
        part = parts[position]
        specifier = part[:1]
        if not specifier and position + 1 < len(parts):
            expanded.append(b"%" + parts[position + 1])
            position += 1
        elif specifier and specifier in SPECIFIERS:
            expanded.append(values.get(specifier.decode(), b"") + part[1:])
        elif specifier == b"{" and variable is not None:
            inner, brace, rest = part[1:].partition(b"}")
            name, _hash, prefix = inner.partition(b"#")
            if not brace or not is_variable(name):
                raise WordError(f"{shown(b'%' + part)}: %{{NAME}} or %{{NAME#PREFIX}} expected")
            expanded.append(variable(name, prefix) + rest)
        else:
            known = " ".join(f"%{character}" for character in SPECIFIERS.decode() + "%")
            raise WordError(f"%{specifier.decode('latin-1')} is not one of {known}")
        position += 1
    return b"".join(expanded)
