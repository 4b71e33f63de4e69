"""The YAML text of a recipe -> its settings, without duplicate names."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also rejects duplicate keys in a section."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name = key.value
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if name in lines:
                raise TwiceError(name, lines[name], line)
            lines[name] = line
        return super().construct_mapping(node, deep=deep)


class TwiceError(yaml.YAMLError):
    """A name appears twice in one section."""

    def __init__(self, name: str, first: int, second: int) -> None:
        super().__init__(
            f"'{name}' appears twice, on line {first} and on line {second}; merge the two"
        )


def load_settings(raw: bytes) -> Any:
    """Parse YAML in UTF-8, or in UTF-16 with a byte-order mark.

    Raises:
        YAMLError: it is not YAML, or a name appears twice in one section.
        UnicodeDecodeError: it is in another encoding.
    """
    is_wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    return yaml.load(raw.decode("utf-16" if is_wide else "utf-8-sig"), _Loader)
