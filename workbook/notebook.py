"""Notebooks: which there are, how they are executed, and what they begin with."""

import inspect
import os
import sys
import textwrap
import warnings
from pathlib import Path

import yaml
from IPython.display import Markdown, display

from workbook.config import Profile, current
from workbook.paths import ROOT, Paths
from workbook.scale import hub


def notebooks(settings: Profile) -> list[str]:
    """Names of the notebooks of a profile, which are stages, in the order of `dvc.yaml`."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    everywhere = {name for name, stage in stages.items() if "embedded" not in stage["foreach"]}
    there = [name for name in stages if (ROOT / "notebooks" / f"{name}.py").is_file()]
    return [name for name in there if settings.world or name in everywhere]


def execute(name: str, profile: str) -> None:
    """Execute the notebook `name` for a profile by papermill, into the profile's folder, where it also is if it fails.

    PapermillExecutionError: a cell failed.
    """
    import jupytext
    import papermill

    os.environ["JUPYTER_PATH"] = ""  # no foreign kernel of the same name comes before this environment's own
    file = Paths(profile).notebook(name)
    jupytext.write(jupytext.read(ROOT / "notebooks" / f"{name}.py"), file)
    papermill.execute_notebook(file, file, {"profile": profile}, kernel_name="python3", progress_bar=False)


def begin(profile: str, name: str) -> tuple[Profile, Path]:
    """What every notebook starts with: the profile, and the folder for the tables and figures of the notebook `name`.

    Applies the figures' style, shows which profile it is, and goes to the repository's root, where its paths begin.
    """
    import pandas as pd

    from workbook import plots  # seaborn takes seconds, and the report needs none

    quiet()
    os.chdir(ROOT)
    settings = current(profile)
    hub.go_offline(hub.models(settings))
    out = Paths(profile).results(name)
    out.mkdir(parents=True, exist_ok=True)
    plots.style()
    pd.set_option("display.max_colwidth", None)  # cells are shown whole
    display(Markdown(f"Profile **{profile}**: {settings.label}."))
    return settings, out


def quiet() -> None:
    """Keep out of a notebook what its reader can do nothing about."""
    if "transformers" in sys.modules:  # its reports of weights that a part of a model does without
        sys.modules["transformers"].logging.set_verbosity_error()
        sys.modules["transformers"].logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of one library about another


def show_missing(runs: list[str]) -> None:
    """Display which runs have not been run."""
    display(Markdown(f"Not run: {', '.join(runs) or 'nothing'}."))


def show(code) -> None:
    """Display the source of a function, method or class as it is running here, with its file and line."""
    code = inspect.unwrap(code)  # a decorator's wrapper lies in another file
    file = Path(inspect.getsourcefile(code))
    lines, number = inspect.getsourcelines(code)
    name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name
    display(Markdown(f"`{name}`, line {number}\n\n```python\n{textwrap.dedent(''.join(lines))}```"))
