"""The house's layers: what may import what, and what `import tuner` may cost."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = {"tuner": set(), "models": {"tuner"}, "landscapes": {"tuner"}}
LAYERS["scripts"] = {"tuner", "models", "landscapes"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise AssertionError(f"{path}: relative import")
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_import_goes_backward():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for layer, below in LAYERS.items()
        for path in (ROOT / layer).rglob("*.py")
        for name in imports_of(path)
        if (top := name.partition(".")[0]) in LAYERS and top != layer and top not in below
    ]
    assert wrong == []


def test_no_module_is_in_a_cycle():
    files = {module_of(p): p for layer in LAYERS for p in (ROOT / layer).rglob("*.py")}
    edges = {
        name: {target for target in imports_of(path) if target in files and target != name}
        # Names that only a type checker loads are no edges at run time.
        for name, path in files.items()
        if name != "tuner"
    }
    done, path = set(), []

    def visit(name):
        if name in path:
            raise AssertionError("cycle: " + " -> ".join([*path[path.index(name) :], name]))
        if name in done or name not in edges:
            return
        path.append(name)
        for target in edges[name]:
            visit(target)
        path.pop()
        done.add(name)

    for name in edges:
        visit(name)
    assert len(done) > 25


def loaded_by(code):
    script = f"{code}\nimport sys\nprint(' '.join(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(output.stdout.split())


def test_import_tuner_loads_nothing_heavy():
    heavy = {"torch", "matplotlib", "scipy", "botorch", "numpy", "rich"}
    assert not heavy & loaded_by("import tuner")


def test_the_library_without_bayes_needs_no_torch():
    code = "from tuner import Float, Study\nStudy({'x': Float(0, 1)}, 'random').ask()"
    assert not {"torch", "matplotlib", "scipy"} & loaded_by(code)


def test_a_replay_without_bayes_needs_no_torch():
    code = "import landscapes.replay_runner, landscapes.synthetic, tuner.race, tuner.scheduler"
    assert not {"torch", "matplotlib", "scipy"} & loaded_by(code)


def test_bayes_needs_no_torch():
    code = (
        "from tuner import Float, Study\n"
        "study = Study({'x': Float(0, 1)}, 'bayes')\n"
        "for _ in range(7):\n"
        "    study.tell(study.ask().number, 0.5)\n"
        "study.ask()\n"
        "assert not study.searcher.fallback"
    )
    assert not {"torch", "matplotlib", "botorch"} & loaded_by(code)


def test_help_loads_no_numbers():
    code = "import sys; sys.argv[1:] = ['--help']; import scripts.tune"
    assert not {"numpy", "torch", "tuner"} & loaded_by(code)


def test_the_default_eta_is_the_librarys():
    import inspect

    from scripts.tune import main
    from tuner.entry import ETA

    assert inspect.signature(main).parameters["eta"].default == ETA
