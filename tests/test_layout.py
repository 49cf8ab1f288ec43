"""The laws of the code, read from its syntax trees."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "newllm_lib"
FILES = sorted(PACKAGE.rglob("*.py"))
# A package may import from those before it in this order, and from itself.
LAYERS = (
    "errors", "wings", "install", "progress", "models", "data", "evaluation", "training", "stages", "chat", "doctor",
    "cli", "kernels", "adapters", "preferences", "background", "export", "colab",
)  # fmt: skip
COLAB_ONLY = {"google", "IPython", "ipywidgets"}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Absolute dotted names of what a file imports, wherever in it."""
    names = []
    parts = ["newllm_lib", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names += [f"{module}.{alias.name}" for alias in node.names] if module == "newllm_lib" else [module]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    layer = layer_of(path)
    if layer.startswith("__"):
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "newllm_lib" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS.index(parts[1]) <= LAYERS.index(layer), f"{layer} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_colab_touches_the_notebook(path):
    if layer_of(path) != "colab":
        assert not {name.split(".")[0] for name in imports(path)} & COLAB_ONLY


def test_every_module_belongs_to_a_layer():
    assert {layer_of(path) for path in FILES} <= {*LAYERS, "__init__", "__main__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_forbidden_constructs(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
            assert not all(isinstance(statement, ast.Pass) for statement in node.body), (
                f"except: pass in line {node.lineno}"
            )
        if isinstance(node, ast.keyword):
            is_trusting = node.arg == "trust_remote_code" and ast.unparse(node.value) != "False"
            assert not is_trusting, f"line {node.value.lineno}"
            assert not (node.arg == "weights_only" and getattr(node.value, "value", None) is False)
        if isinstance(node, ast.Name) and node.id == "print":
            assert layer_of(path) in ("cli", "colab"), f"print in line {node.lineno}"
    assert not {"pickle", "dill", "marshal"} & set(imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_well_named(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in {"utils", "helpers", "common", "misc", "manager"}
    if path.name != "__main__.py" and path.stat().st_size:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "a file says what it is for"


def test_each_test_file_has_a_name_of_its_own():
    """tests/ is no package: pytest would take two files of one name for the same module, and run neither."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_no_module_imports_itself_by_a_detour():
    modules = {".".join(["newllm_lib", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in FILES}
    graph = {name: [target for target in imports(path) if target in modules] for name, path in modules.items()}

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        for target in graph.pop(name, ()):
            walk(target, (*way, name))

    for name in modules:
        walk(name, ())
