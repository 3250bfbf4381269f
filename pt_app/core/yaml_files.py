"""Reading of YAML files that people write. `files` has the rest; yaml takes 30 ms to import."""

from pathlib import Path
from typing import Any

import yaml

from pt_app.core.errors import UserError
from pt_app.core.files import ABSENT, read_text

MERGE = "tag:yaml.org,2002:merge"  # the key <<


class EachOnce(yaml.SafeLoader):
    """A loader that refuses two keys of one name in a mapping: YAML forbids it, and one is lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping; raise ValueError for a key that stands twice."""
        keys = [key for key, _ in node.value if key.tag != MERGE]
        names = [(key.tag, self.construct_object(key, deep=True)) for key in keys]
        for number, name in enumerate(names):
            if name in names[:number]:
                line = keys[number].start_mark.line + 1
                raise ValueError(f'line {line}: "{name[1]}" stands twice')
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, absent: str = ABSENT, remedy: str = "correct it") -> Any:
    """Read a YAML file; the arguments are those of `read_text`.

    Raises:
        UserError: if it cannot be read, is not YAML or holds a key twice.
    """
    try:
        return yaml.load(read_text(path, absent, remedy), EachOnce)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML ({' '.join(str(error).split())}): {remedy}") from error
