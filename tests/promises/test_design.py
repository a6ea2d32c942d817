"""docs/design.md shows the tree as it is."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOWN = ("kernels/spiketriton_kernels", "spiketriton", "profiling")


def described() -> set[str]:
    """Files of the tree in docs/design.md: a folder's line ends with /, files are indented below it."""
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    tree = re.search(r"```text\n(kernels/spiketriton_kernels/.*?)```", text, re.DOTALL)
    assert tree is not None
    found, folders = set(), []
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        else:
            found |= {"".join([*folders, name])}
    return found


def there() -> set[str]:
    files = {path for folder in SHOWN for path in (ROOT / folder).rglob("*") if path.is_file()}
    code = {path for path in files if path.suffix in (".py", ".cpp", ".h")}
    return {str(path.relative_to(ROOT)) for path in code if path.name != "__init__.py"}


def test_the_tree_of_the_design_is_the_tree():
    assert described() == there()
