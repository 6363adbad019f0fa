"""Files that may be hostile: bounded, inside their directory, one clear line on failure."""

from jaxllama.files.reading import (
    check_characters,
    check_names,
    check_new_name,
    check_shape,
    inside,
    parse_object,
    read_bytes,
    read_json,
    refuse_stranger,
    size,
    stranger,
)

__all__ = [
    "check_characters",
    "check_names",
    "check_new_name",
    "check_shape",
    "inside",
    "parse_object",
    "read_bytes",
    "read_json",
    "refuse_stranger",
    "size",
    "stranger",
]
