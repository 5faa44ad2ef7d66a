"""The client without the service: its own wheel, in a process that finds nothing else."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ALONE = ROOT / "deploy" / "client"
# What httpx2 asks for is looked up where it is installed; the service's own needs are not found.
SCRIPT = """
import sys
from importlib.abc import MetaPathFinder

class Nothing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
sys.path[:0] = [{wheel!r}]
from serve.client import AsyncM3Client, M3Client
import serve.client
assert serve.client.__file__.startswith({wheel!r}), serve.client.__file__
with M3Client({url!r}) as client:
    answer = client.ask({picture!r}, "what colour is the biggest shape?", explain=True)
print(answer.scale, answer.explain.sentence)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's wheel, built as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ALONE, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_client_and_nothing_of_the_service(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    client = {f"serve/client/{path.name}" for path in (ROOT / "serve/client").glob("*.py")}
    beside = {"serve/__init__.py", "router/__init__.py", "router/explanation.py"}
    assert names == client | beside


def test_it_asks_a_service_where_nothing_of_the_service_is_installed(
    wheel: Path, running: object, tmp_path: Path
) -> None:
    missing = {"torch", "ray", "transformers", "lightgbm", "fastapi", "pydantic", "numpy", "PIL",
               "starlette", "sklearn", "pyarrow", "m3model", "training"}  # fmt: skip
    script = SCRIPT.format(
        missing=missing, wheel=str(wheel), url=running.url,  # type: ignore[attr-defined]
        picture=str(ROOT / "serve/pictures/scene-00.png"),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("36 ")


def test_it_asks_for_what_the_package_asks_for() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    alone = tomllib.loads((ALONE / "pyproject.toml").read_text())["project"]
    wanted = alone["dependencies"] + alone["optional-dependencies"]["pictures"]
    assert set(wanted) <= set(whole["dependencies"])
    assert (alone["version"], alone["requires-python"]) == (
        whole["version"], whole["requires-python"],
    )  # fmt: skip
