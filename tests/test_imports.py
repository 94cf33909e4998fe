"""Who imports whom: private files are their siblings' alone, and no imports go in a circle.

That imports point downwards is the business of `lint-imports`, see `pyproject.toml`.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinydiffusion"
FOLDERS = ("tinydiffusion", "tests", "benchmarks", "dev")


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported(text: str) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name if name in MODULES else str(node.module) for name in names]
            yield from (module for module in modules if module in MODULES)


def is_private(module: str) -> bool:
    name = module.rpartition(".")[2]
    return name.startswith("_") and not name.startswith("__")


def strangers(importer: str, modules: Iterator[str]) -> list[str]:
    """Private modules of another folder than the importer's."""
    folder = importer.rpartition(".")[0]
    return [m for m in modules if is_private(m) and m.rpartition(".")[0] != folder]


@pytest.mark.parametrize("folder", FOLDERS)
def test_private_files_are_imported_by_their_siblings_only(folder):
    found = {
        str(file.relative_to(ROOT)): strange
        for file in sorted((ROOT / folder).rglob("*.py"))
        if (strange := strangers(module_of(file), imported(file.read_text())))
    }
    assert found == {}


def test_no_imports_go_in_a_circle():
    graph = {
        module: {other for other in imported(file.read_text()) if other != module}
        for module, file in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_rules_see_what_they_forbid():
    text = "from tinydiffusion.samplers import _check\nimport tinydiffusion.samplers.euler\n"
    assert list(imported(text)) == ["tinydiffusion.samplers._check", "tinydiffusion.samplers.euler"]
    assert strangers("tests.test_x", imported(text)) == ["tinydiffusion.samplers._check"]
    assert strangers("tinydiffusion.samplers.ddim", imported(text)) == []
