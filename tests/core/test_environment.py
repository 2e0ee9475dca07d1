"""The environment is described once: pyproject, constraints and environment.yml agree; imports stay light."""

import ast
import contextlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import yaml
from packaging.specifiers import SpecifierSet

from workbook.paths import ROOT


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {_name(line): line.split("==")[1] for line in lines if line and not line.startswith("#")}


def _name(requirement: str) -> str:
    """The package's name as the index compares it."""
    return re.match(r"[A-Za-z0-9_.-]+", requirement.split("==")[0])[0].lower().replace("_", "-")


def _requirements() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {_name(item) for group in groups for item in group}
    return names - {"viral-workbook"}


def test_every_requirement_is_pinned():
    assert _requirements() <= set(_pins())


def test_every_pin_installs_on_the_oldest_python():
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    for name, pin in _pins().items():
        with contextlib.suppress(PackageNotFoundError):  # of an extra that is not installed
            package = distribution(name)
            assert package.version.split("+")[0] == pin, name
            assert f"{oldest}.0" in SpecifierSet(package.metadata["Requires-Python"] or ""), name


def test_conda_installs_what_make_installs():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in conda["dependencies"] if isinstance(item, dict))
    assert pip == ["-c constraints.txt", "-e .[all]"]
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    python = next(item for item in conda["dependencies"] if str(item).startswith("python="))
    assert f">={python.removeprefix('python=')}" == required


def _imports(statement: str, absent: list[str]) -> None:
    check = f"{statement}\nimport sys\nprint(sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_core_needs_neither_dvc_nor_papermill_nor_deepspeed_and_only_ross_needs_diffusers():
    files = [p.relative_to(ROOT) for p in (ROOT / "viral_core").rglob("*.py") if not p.stem.startswith("_")]
    modules = [".".join(file.with_suffix("").parts) for file in files]
    others = [name for name in modules if name != "viral_core.ross"]
    check = "import sys\nassert 'diffusers' not in sys.modules"
    _imports(
        f"import {', '.join(others)}\n{check}\nimport viral_core.ross",
        ["workbook", "dvc", "papermill", "deepspeed", "jupytext"],
    )


def test_the_package_itself_loads_no_torch():
    _imports("import viral_core, workbook.config", ["torch", "transformers"])


def test_torchvision_can_be_imported_after_the_package():
    _imports("import viral_core\nimport torchvision.ops", ["deepspeed"])


def _imported_by(package: str) -> dict[str, set[str]]:
    """Every module that the files of a package import, by file; imports inside functions included."""
    found = {}
    for file in (ROOT / package).rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        found[file.relative_to(ROOT).as_posix()] = names
    return found


def test_the_core_knows_nothing_of_the_workbook():
    for file, names in _imported_by("viral_core").items():
        assert not {name.split(".")[0] for name in names} & {"workbook", "yaml", "dvc", "papermill"}, file


def test_the_world_knows_the_core_and_nothing_else_of_the_workbook():
    for file, names in _imported_by("workbook/world").items():
        assert all(n.startswith("workbook.world") for n in names if n.split(".")[0] == "workbook"), file
