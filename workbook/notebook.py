"""What notebooks begin and end with; executing one, a jupytext script, with papermill after checking its parameters."""

import inspect
import os
import sys
import tempfile
import textwrap
from pathlib import Path

from workbook.paths import ROOT, RunPaths
from workbook.profile import Profile, load


def begin(profile: str, name: str) -> tuple[Profile, Path]:
    """What every notebook starts with: the profile, and the folder for the tables and figures of the notebook `name`.

    Applies the figures' style, shows which profile it is, and goes to the repository's root, where a profile's paths
    begin.

    Raises:
        ProfileError: no such profile; the message lists those there are.
    """
    from IPython.display import Markdown, display

    from workbook import plots

    if "transformers" in sys.modules:  # its reports of weights that a part of a model does without
        sys.modules["transformers"].logging.set_verbosity_error()
    os.chdir(ROOT)
    settings = load(profile)
    out = ROOT / RunPaths(profile).results(name)
    out.mkdir(parents=True, exist_ok=True)
    plots.style()
    display(Markdown(f"Profile **{profile}**: {settings.label}."))
    return settings, out


def conclude(lines: list[str]) -> None:
    """Show sentences as a list."""
    from IPython.display import Markdown, display

    display(Markdown("\n".join(f"- {line}" for line in lines)))


def show(code) -> None:
    """Display the source of a function, method or class as it is running here, with its file and line."""
    from IPython.display import Markdown, display

    file = Path(inspect.getsourcefile(code))
    lines, number = inspect.getsourcelines(code)
    name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name
    display(Markdown(f"`{name}`, line {number}\n\n```python\n{textwrap.dedent(''.join(lines))}```"))


def execute(source: str | Path, out: str | Path, parameters: dict) -> None:
    """Run `source` (py:percent) with `parameters` and write the executed notebook to `out`.

    A failing cell leaves the notebook with its error in `out` and raises.

    Raises:
        FileNotFoundError: no such notebook.
        ValueError: a parameter that the notebook's cell tagged "parameters" does not set, or sets to another type.
    """
    import jupytext
    import papermill

    source, out = Path(source), Path(out)
    if not source.is_file():
        raise FileNotFoundError(f"no notebook {source}")
    with tempfile.TemporaryDirectory() as folder:
        unexecuted = Path(folder) / f"{source.stem}.ipynb"
        jupytext.write(jupytext.read(source), unexecuted)
        known = {name: facts["default"] for name, facts in papermill.inspect_notebook(str(unexecuted)).items()}
        if unknown := sorted(set(parameters) - set(known)):
            raise ValueError(f"{source}: unknown parameter {', '.join(unknown)}; it has: {', '.join(known)}")
        for name, value in parameters.items():
            default = type(eval(known[name], {"__builtins__": {}}))
            if not isinstance(value, default):
                raise ValueError(f"{source}: parameter {name} is a {default.__name__}, not {value!r}")
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            papermill.execute_notebook(
                str(unexecuted),
                str(out),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(source.parent),
                start_timeout=600,
            )
        finally:
            if out.is_file():
                _name_source(out, source)


def _name_source(out: Path, source: Path) -> None:
    """Papermill writes the paths it was given into the notebook; a reader wants the script, not a temporary file."""
    import nbformat

    notebook = nbformat.read(out, as_version=4)
    notebook.metadata.papermill.update(input_path=source.as_posix(), output_path=out.as_posix())
    nbformat.write(notebook, out)
