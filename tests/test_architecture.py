"""The import graph runs in one direction, and importing the package stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import agentgpt_remote

PACKAGE = Path(agentgpt_remote.__file__).parent
FOLDERS = {"cli", "cloud", "policy", "server", "trainer", "wrappers"}
TOP = {"__init__", "__main__", "agentgpt", "diagnostics"}  # the public face: may name every folder, nobody imports it
ALLOWED = {
    "shared": {"shared"},
    "wrappers": {"wrappers", "shared"},
    "policy": {"policy", "shared"},
    "server": {"server", "wrappers", "shared"},
    "trainer": {"trainer", "policy", "wrappers", "shared"},
    "cloud": {"cloud", "trainer", "shared"},
    "top": FOLDERS | {"shared", "top"},
    "cli": FOLDERS | {"shared", "top"},
}
HEAVY_ONLY_IN = {"torch": {"policy", "trainer"}, "boto3": {"cloud"}, "sagemaker": {"cloud"}}


def _modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def _layer(module: str) -> str:
    head = module.partition(".")[0]
    if head in TOP:
        return "top"
    return head if head in FOLDERS else "shared"


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(path: Path, *, only_at_import: bool) -> set[str]:
    """Return the names of this package's modules and of others that a file imports."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if _is_type_checking(node):
            continue
        if only_at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))
    return names


def _internal(names: set[str], modules: dict[str, Path]) -> set[str]:
    short = {name.removeprefix("agentgpt_remote.") for name in names if name.startswith("agentgpt_remote.")}
    return {name for name in short if name in modules}


@pytest.mark.parametrize("module", sorted(_modules()))
def test_module_imports_only_what_its_folder_may(module: str) -> None:
    modules = _modules()
    layer = _layer(module)
    for imported in _internal(_imports(modules[module], only_at_import=False), modules):
        if imported == "_version" or (layer == "shared" and imported == "shared"):
            continue
        if module == "__init__" or (layer == "wrappers" and imported.startswith("server")):
            assert module == "__init__", f"{module} imports {imported}: wrappers never import the server"
            continue
        assert _layer(imported) in ALLOWED[layer], f"{module} ({layer}) imports {imported} ({_layer(imported)})"


@pytest.mark.parametrize("module", sorted(_modules()))
def test_module_keeps_heavy_libraries_where_they_belong(module: str) -> None:
    heads = {name.partition(".")[0] for name in _imports(_modules()[module], only_at_import=False)}
    for library, folders in HEAVY_ONLY_IN.items():
        assert library not in heads or _layer(module) in folders, f"{module} imports {library}"


def test_cli_imports_other_folders_inside_functions_only() -> None:
    modules = _modules()
    for module in (name for name in modules if _layer(name) == "cli"):
        imported = _internal(_imports(modules[module], only_at_import=True), modules)
        assert {_layer(name) for name in imported} <= {"cli", "shared"}, f"{module} imports {imported} at import"


def test_import_graph_has_no_cycle() -> None:
    modules = _modules()
    graph = {name: _internal(_imports(path, only_at_import=True), modules) for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert done == set(graph)


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_import_is_light() -> None:
    loaded = json.loads(_run("import agentgpt_remote, sys, json; print(json.dumps(sorted(sys.modules)))"))
    heavy = {"torch", "starlette", "uvicorn", "typer", "boto3", "rich", "tensorboard", "matplotlib"}
    assert heavy.isdisjoint(loaded)
    assert "agentgpt_remote.registration" in loaded


def test_import_takes_little_beyond_gymnasium() -> None:
    code = (
        "import time, gymnasium; start = time.perf_counter()\n"
        "import agentgpt_remote; print(time.perf_counter() - start)"
    )
    assert min(float(_run(code)) for _ in range(3)) < 0.6


def test_public_names_all_load() -> None:
    for name in agentgpt_remote.__all__:
        assert getattr(agentgpt_remote, name) is not None
    assert set(agentgpt_remote.__all__) <= set(dir(agentgpt_remote))


def test_unknown_public_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"'RemoteEvn'.*RemoteEnv"):
        _ = agentgpt_remote.RemoteEvn  # type: ignore[attr-defined]


def test_missing_extra_names_the_command() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnxruntime'] = None; import agentgpt_remote\n"
        "try: agentgpt_remote.GPTPolicy('folder')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    assert "DependencyNotInstalled" in (out := _run(code))
    assert 'pip install "agentgpt-remote[train]"' in out
