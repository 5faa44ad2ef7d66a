"""Rules of the house that no linter knows: names, sizes, layers and what may be imported."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
import types
import warnings
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("m3model", "router", "serve", "training")
CODE = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class LongFile(UserWarning):
    """A file of more than 400 lines: look whether two things live in it."""


def name_of(path):
    return str(path.relative_to(ROOT))


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Yield (module, line) for every absolute import, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module, node.lineno


def imported_modules(path, modules):
    """Yield the modules of the house that a file imports; `from a import b` may mean a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


def test_the_packages_are_the_four():
    built = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(built) == list(PACKAGES)
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").is_file()


def test_nobody_writes_import_serve():
    """`import serve.x` would rebind the name that `from ray import serve` has bound."""
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path in CODE + TESTS + BENCHMARKS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import)
        and any(alias.name.split(".")[0] == "serve" for alias in node.names)
    ]
    assert wrong == []


def test_no_artefact_can_run_code():
    """No pickle in any form: artefacts are text, JSON, Parquet or safetensors."""
    loading = re.compile(r"torch\.load\b|torch\.save\b|\bjoblib\b|allow_pickle\s*=\s*True")
    wrong = []
    for path in CODE + BENCHMARKS:
        wrong += [
            f"{name_of(path)}:{line}"
            for module, line in imports_of(path)
            if module.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
        ]
        lines = path.read_text(encoding="utf-8").splitlines()
        wrong += [f"{name_of(path)}:{n}" for n, line in enumerate(lines, 1) if loading.search(line)]
    assert wrong == []


def test_no_module_has_a_standard_librarys_name():
    wrong = [
        name_of(path)
        for path in CODE + TESTS + BENCHMARKS
        if path.stem in sys.stdlib_module_names and path.stem != "__init__"
    ]
    assert wrong == []
    assert [name_of(path) for path in BENCHMARKS if path.stem in PACKAGES] == []


def test_vague_names_stay_out():
    vague = {"utils", "util", "helpers", "helper", "common", "base", "core", "manager", "misc"}
    assert [name_of(path) for path in CODE if set(path.stem.split("_")) & vague] == []


def test_long_files_are_named():
    """400 lines are a warning, not a limit: what belongs together stays together."""
    n_lines = {p: len(p.read_text("utf-8").splitlines()) for p in CODE + BENCHMARKS + TESTS}
    for path, n in n_lines.items():
        if n > 400:
            # Shown by pytest with the summary, fails nothing.
            warnings.warn(f"{name_of(path)} has {n} lines", LongFile, stacklevel=1)


def test_a_folder_holds_at_most_a_dozen_modules():
    """`benchmarks/` itself holds one script a claim, as many as there are."""
    folders = Counter(path.parent for path in CODE + BENCHMARKS)
    del folders[ROOT / "benchmarks"]
    assert {name_of(folder): n for folder, n in folders.items() if n > 12} == {}


def test_no_two_modules_import_each_other():
    """Nor any longer circle: every import, at any depth, runs one way."""
    modules = {module_of(path): path for path in CODE}
    edges = {
        name: {target for target in imported_modules(path, modules) if target != name}
        for name, path in modules.items()
    }
    order, circle = graphlib.TopologicalSorter(edges), ()
    try:
        order.prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert circle == ()


def test_every_module_says_what_it_is_for():
    assert [
        name_of(p) for p in CODE if not ast.get_docstring(ast.parse(p.read_text("utf-8")))
    ] == []


def test_tests_mirror_the_packages():
    """Folders as in the house; `house` is about the repository, `whole` about several packages."""
    rooms = {path.relative_to(ROOT / "tests").parts[0] for path in TESTS}
    assert rooms == {*PACKAGES, "benchmarks", "house", "whole", "conftest.py"}
    wrong = [
        name_of(path.parent)
        for path in TESTS
        if path.relative_to(ROOT / "tests").parts[0] in PACKAGES
        and not (ROOT / path.parent.relative_to(ROOT / "tests")).is_dir()
    ]
    assert wrong == []
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_tests_of_a_package_import_what_it_may_import():
    """Tests of a lower package know no upper one; what joins them is in tests/whole."""
    below = {"m3model": {"m3model"}, "router": {"router"}}
    below |= {upper: {upper, "m3model", "router"} for upper in ("serve", "training")}
    wrong = [
        f"{name_of(path)}:{line} {module}"
        for path in TESTS
        if (room := path.relative_to(ROOT / "tests").parts[0]) in PACKAGES
        for module, line in imports_of(path)
        if (package := module.split(".")[0]) in PACKAGES and package not in below[room]
    ]
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_of_tests_hides_no_package(package):
    """tests/router is no package `router`: importlib mode puts no folder of tests on the path."""
    assert (ROOT / "tests" / package).is_dir()
    assert Path(importlib.import_module(package).__file__) == ROOT / package / "__init__.py"
    assert not [entry for entry in sys.path if Path(entry).resolve() == ROOT / "tests"]


def test_everything_imported_is_declared():
    """A package that another one happens to bring along is not ours to import."""
    modules_of = {}
    for module, owners in metadata.packages_distributions().items():
        for owner in owners:
            modules_of.setdefault(owner.lower().replace("_", "-"), set()).add(module)

    def modules(requirements):
        names = [re.match(r"[\w-]+", each).group().lower() for each in requirements]
        return set().union(*(modules_of.get(name.replace("_", "-"), {name}) for name in names))

    extras = PROJECT["project"]["optional-dependencies"]
    own = modules(PROJECT["project"]["dependencies"]) | set(PACKAGES) | sys.stdlib_module_names
    # A benchmark in several files imports its neighbours by name, as scripts do.
    dev = own | modules(extras["dev"])
    dev |= {path.stem for path in (ROOT / "benchmarks").iterdir()}
    dev |= {"moto", "werkzeug"}  # of the S3 server, whose test is left out without them
    # lmms-eval loads training.lmms.model where both are installed: it is there already.
    extra = own | {"vllm", "lmms_eval"} | modules(extras["otel"]) | modules(extras["stores"])
    wrong = [
        f"{name_of(path)}:{line} {module}"
        for paths, allowed in ((CODE, extra), (TESTS + BENCHMARKS, dev))
        for path in paths
        for module, line in imports_of(path)
        if module.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_constraints_pin_every_dependency():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in PROJECT["project"]["dependencies"] + extras["dev"]:
        assert re.match(r"[\w-]+", requirement).group().lower() in pinned, requirement


LIGHT = [
    ("router", {"torch", "ray", "transformers", "fastapi"}),
    ("router.router", {"torch", "ray", "transformers", "fastapi", "m3model"}),
    ("router.records", {"torch", "ray", "pyarrow", "lightgbm"}),
    ("m3model", {"torch", "ray", "transformers", "lightgbm"}),
    ("m3model.terminal", {"torch", "ray", "transformers", "lightgbm", "rich"}),
    ("training", {"torch", "ray", "transformers", "lightgbm"}),
    ("training.lmms.manifest", {"torch", "ray", "transformers", "lmms_eval", "numpy"}),
    ("training.cli", {"torch", "ray", "transformers", "lightgbm", "matplotlib"}),
    ("serve.cli", {"torch", "ray", "transformers", "lightgbm"}),
    ("serve.protocol", {"torch", "ray", "transformers", "fastapi"}),
    ("serve.gateway.gateway", {"torch", "ray", "transformers", "fastapi", "opentelemetry"}),
]


@pytest.mark.parametrize(("module", "heavy"), LIGHT, ids=[module for module, _ in LIGHT])
def test_importing_is_light(module, heavy, python):
    code = f"import sys, importlib; importlib.import_module({module!r}); print(*sys.modules)"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert heavy & set(done.stdout.split()) == set()


@pytest.mark.slow
def test_layers_hold():
    """The contracts of pyproject.toml; `make check` runs the same command."""
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_no_room_hides_one_of_its_modules():
    """A name handed on by a room must not be that of a module in it: `import a.b` would miss it."""
    wrong = []
    for path in CODE:
        if path.stem != "__init__" and path.parent != ROOT:
            found = getattr(importlib.import_module(module_of(path.parent / "__init__.py")),
                            path.stem, None)  # fmt: skip
            if found is not None and not isinstance(found, types.ModuleType):
                wrong.append(name_of(path))
    assert wrong == []
