"""Notebooks run as scripts: what their cells compute is compared with figures worked out by hand."""

import ast
import importlib
import runpy

import matplotlib.pyplot as plt
import pytest
from peft import get_peft_model_state_dict

from workbook import notebook
from workbook.paths import ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs notebooks/<name>.py with its tables and figures in a folder of its own, and returns its variables."""
    out = tmp_path_factory.mktemp("results")

    def run_notebook(name: str) -> dict:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(notebook, "begin", lambda profile, notebook_name: (None, out))
            variables = runpy.run_path(ROOT / "notebooks" / f"{name}.py")
        plt.close("all")
        return variables

    return run_notebook


@pytest.fixture(scope="module")
def arithmetic(run):
    return run("paper_arithmetic")


def test_average_gains(arithmetic):
    percent = arithmetic["average"]["mean relative gain (%)"]
    assert percent["four systems, six benchmarks"] == pytest.approx(7.49, abs=0.005)
    assert percent["four systems, without MME"] == pytest.approx(8.39, abs=0.005)
    assert percent["Vicuna-7B with CLIP, without MME"] == pytest.approx(9.449, abs=0.001)


def test_larger_gains_than_the_largest(arithmetic):
    largest = arithmetic["largest"]
    assert largest["relative"].round(1).tolist() == [40.1, 21.0, 18.2, 17.3]
    assert tuple(largest.iloc[-1][["run", "benchmark"]]) == ("siglip2-viral", "mmvp")


def test_not_all_tasks_improve(arithmetic):
    table = arithmetic["not_improved"]
    assert set(zip(table["run"], table["benchmark"], strict=True)) == {("qwen-viral", "pope"), ("viral", "mmstar")}


def test_errors_of_table_3(arithmetic):
    table = arithmetic["drops"].set_index(["run", "n"])
    assert 17 < table.loc[("viral", 650), "error of a drop"] < 19
    assert table.loc[("viral", 788), "difference"] == 28
    assert table["errors"].max() == pytest.approx(2.48, abs=0.01)


def test_unattainable_accuracies(arithmetic):
    table = arithmetic["unattainable"]
    assert set(table[table["benchmark"] == "cv_bench"]["value"]) == {57.59, 57.77, 49.62}
    assert (table["benchmark"] == "mmvp").sum() > 3
    assert not (table["benchmark"] == "mmstar").any()


def test_where_viral_is_not_the_best(arithmetic):
    better = arithmetic["better"].groupby("sweep")["benchmark"].agg(set)
    assert better["Table 2, layers"] == {"pope", "mme"}
    assert better["Table 5"] == {"whats_up"}
    assert better["Table 6"] == {"mmstar"}
    assert arithmetic["clip"].loc["mme", "difference"] == pytest.approx(-101.72)


@pytest.fixture(scope="module")
def own_training(run):
    return run("use_in_your_training")


def test_an_own_training_needs_few_lines_and_no_workbook():
    source = (ROOT / "notebooks" / "use_in_your_training.py").read_text(encoding="utf-8")
    assert "from workbook" not in source
    assert "import workbook" not in source
    cell = source.split('tags=["training"]')[1].split("# %%")[0]
    assert sum(bool(line.strip()) for line in cell.splitlines()) < 40
    assert 4 <= cell.count("# VIRAL") <= 8


def test_an_own_training_learns_both(own_training):
    losses = own_training["losses"]
    assert losses["language"].tail(4).mean() < 0.5 * losses["language"].head(4).mean()
    assert losses["alignment"].iat[0] > -0.5
    assert losses["alignment"].tail(4).mean() < -0.9
    assert set(own_training["parts"].index) == {"head", "projector", "LoRA"}


def test_an_own_training_saves_head_and_projector_with_the_adapters(own_training):
    saved = get_peft_model_state_dict(own_training["model"])
    assert {"alignment_head", "multi_modal_projector", "lora_A"} <= {part for name in saved for part in name.split(".")}


def test_an_own_training_leaves_a_plain_llava(own_training):
    hooks = []
    for module in own_training["llava"].modules():
        hooks += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    assert not [hook for hook in hooks if hook.__module__.startswith("viral_core")]


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda file: file.stem)
def test_what_notebooks_show_is_there(file):
    """Every `show(module.function)` and `show(Class.method)` names code that exists."""
    tree, names = ast.parse(file.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = (node.module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "show":
            first, *rest = ast.unparse(node.args[0]).split(".")
            module, name = names[first]
            code = getattr(importlib.import_module(module), name, None) or importlib.import_module(f"{module}.{name}")
            for attribute in rest:
                code = getattr(code, attribute)
            assert callable(code)
