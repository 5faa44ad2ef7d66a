"""Rules of the house that no linter knows: names, sizes, layers and what may be imported."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("m3model", "router", "serve", "training")
CODE = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(path):
    return str(path.relative_to(ROOT))


def imports_of(path):
    """Yield (module, line) for every absolute import, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module, node.lineno


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


def test_files_are_short():
    def n_lines(path):
        return len(path.read_text(encoding="utf-8").splitlines())

    assert {name_of(path): n_lines(path) for path in CODE + BENCHMARKS if n_lines(path) > 300} == {}
    assert {name_of(path): n_lines(path) for path in TESTS if n_lines(path) > 400} == {}


def test_every_module_says_what_it_is_for():
    assert [
        name_of(p) for p in CODE if not ast.get_docstring(ast.parse(p.read_text("utf-8")))
    ] == []


def test_tests_are_flat_and_named_after_their_unit():
    """A folder tests/router would hide the package router."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} <= {"data"}
    rooms = (*PACKAGES, "house", "bench", "whole")
    wrong = [
        path.name for path in TESTS if not path.name.startswith(tuple(f"test_{r}_" for r in rooms))
    ]
    assert wrong in ([], ["conftest.py"])


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
    dev = own | modules(extras["dev"]) | {path.stem for path in BENCHMARKS}
    vllm = own | {"vllm"}
    wrong = [
        f"{name_of(path)}:{line} {module}"
        for paths, allowed in ((CODE, vllm), (TESTS + BENCHMARKS, dev))
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
    ("training", {"torch", "ray", "transformers", "lightgbm"}),
    ("training.cli", {"torch", "ray", "transformers", "lightgbm", "matplotlib"}),
    ("serve.cli", {"torch", "ray", "transformers", "lightgbm"}),
    ("serve.protocol", {"torch", "ray", "transformers", "fastapi"}),
]


@pytest.mark.parametrize(("module", "heavy"), LIGHT, ids=[module for module, _ in LIGHT])
def test_importing_is_light(module, heavy):
    code = f"import sys, importlib; importlib.import_module({module!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()


@pytest.mark.slow
def test_layers_hold():
    """The contracts of pyproject.toml; `make check` runs the same command."""
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
