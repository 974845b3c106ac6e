"What holds for the project as a whole: the notebooks are the source, and everything made from them is current."
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
             if not any(part[0] in "_." for part in p.relative_to(ROOT).parts)]
LIBRARY = [p for p in NOTEBOOKS if p.parent.name == "nbs" and p.name != "index.ipynb"]
MODULES = [p for p in sorted((ROOT / "gz_nbdev").rglob("*.py")) if p.name[0] != "_"]


def name(path: Path) -> str:
    "How a file is called in the report of a test"
    return path.relative_to(ROOT).as_posix()


def cells(path: Path, kind: str = "code") -> list[dict]:
    "The cells of one kind of the notebook at `path`, each with its source as one string"
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c | {"source": "".join(c["source"])} for c in found if c["cell_type"] == kind]


def outputs(path: Path) -> list[dict]:
    "Every stored output of the notebook at `path`"
    return [o for c in cells(path) for o in c["outputs"]]


def flags(source: str) -> set[str]:
    "The `#|` directives at the top of a cell"
    return {line[2:].split(":")[0].split()[0] for line in source.splitlines() if re.match(r"#\|\s*\w", line)}


def number_and_module(path: Path) -> tuple[int, str]:
    "The number of a library notebook, and the module that it exports"
    exported = re.search(r"#\|\s*default_exp\s+(\S+)", "\n".join(c["source"] for c in cells(path)))
    return int(path.name.split("_")[0]), exported[1]


NUMBER = {module: number for number, module in map(number_and_module, LIBRARY)}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
each_library_notebook = pytest.mark.parametrize("path", LIBRARY, ids=name)
each_module = pytest.mark.parametrize("path", MODULES, ids=name)


# What is made from the notebooks

def run_in_copy(copy: Path, command: str) -> None:
    "Run an nbdev command in a copy of the project, so that the project itself stays as it is"
    for folder in ("nbs", "gz_nbdev"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for file in ("pyproject.toml", "_quarto.yml"): shutil.copy(ROOT / file, copy)
    env = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    done = subprocess.run([Path(sys.executable).parent / command], cwd=copy, env=env, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def changed(copy: Path, folder: str, pattern: str) -> list[str]:
    "The files that differ between the project and its copy"
    both = {p.relative_to(top) for top in (ROOT, copy) for p in (top / folder).rglob(pattern)}
    def text(path): return path.read_text(encoding="utf-8") if path.exists() else None
    return sorted(str(p) for p in both if text(ROOT / p) != text(copy / p))


def test_modules_are_what_the_notebooks_export(tmp_path):
    run_in_copy(tmp_path, "nbdev-export")
    assert changed(tmp_path, "gz_nbdev", "*.py") == [], "run nbdev-export and commit"


def test_notebooks_are_clean(tmp_path):
    run_in_copy(tmp_path, "nbdev-clean")
    assert changed(tmp_path, "nbs", "*.ipynb") == [], "run nbdev-clean and commit"


def test_readme_sidebar_and_map_are_current():
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    assert readme.stale() == [], "run python .ci/readme.py and commit"


def test_one_quarto_configuration():
    assert (ROOT / "nbs" / "_quarto.yml").read_text() == (ROOT / "_quarto.yml").read_text()


def test_what_the_docs_need_is_committed():
    if not (ROOT / ".git").exists(): pytest.skip("this is not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"nbs/sidebar.yml", "nbs/nbdev.yml", "gz_nbdev/_modidx.py"} <= set(tracked.split("\n"))


# The notebooks

@each_notebook
def test_title_and_one_line(path):
    assert re.match(r"# .+\n\n> .+", cells(path, "markdown")[0]["source"])


@each_notebook
def test_outputs_within_budget(path):
    budget = 600_000 if path.parent.name == "tutorials" else 300_000
    assert sum(len(json.dumps(o)) for o in outputs(path)) <= budget


@each_notebook
def test_no_stored_traceback(path):
    assert [o for o in outputs(path) if o["output_type"] == "error"] == []


@each_notebook
def test_no_path_of_this_machine(path):
    "A stored output that names a folder of one machine is noise to every reader"
    text = path.read_text(encoding="utf-8")
    assert [folder for folder in (str(ROOT), str(Path.home()), "site-packages") if f"{folder}/" in text] == []


@each_notebook
def test_real_cells_store_no_picture(path):
    "The data belong to others: tables and plots may be stored, pictures made from the pixels may not"
    shows = re.compile(r"\b(image_grid|imshow|matshow|figimage|show_batch|show_results|show_images?|plot_top_losses|"
                       r"Image\.open|fromarray)\b")
    for cell in cells(path):
        if "real" not in flags(cell["source"]): continue
        assert not shows.search(cell["source"]), f"a real cell shows pictures:\n{cell['source']}"
        for output in cell["outputs"]:
            data = output.get("data", {})
            stored = {"image/jpeg", "image/gif", "image/webp"} & data.keys()
            assert not stored, f"a real cell stores a picture:\n{cell['source']}"
            assert "data:image" not in "".join(data.get("text/html", "")), f"so does the HTML of\n{cell['source']}"


@each_library_notebook
def test_reads_like_a_lesson(path):
    "Short cells, and prose that says why"
    code = [c["source"] for c in cells(path)]
    prose = sum(len(c["source"].split()) for c in cells(path, "markdown"))
    assert max(source.count("\n") + 1 for source in code) <= 45
    assert prose >= 12 * len(code)
    assert "nbdev_export()" in code[-1]


@each_library_notebook
def test_imports_only_lower_numbers(path):
    number, module = number_and_module(path)
    source = "\n".join(c["source"] for c in cells(path))
    used = set(re.findall(r"^\s*(?:from|import) gz_nbdev\.(\w+)", source, flags=re.MULTILINE)) - {module}
    assert [m for m in sorted(used) if NUMBER.get(m, 100) >= number] == []


# The modules

@each_module
def test_public_names_have_docstrings(path):
    top = ast.parse(path.read_text(encoding="utf-8")).body
    defined = [n for n in top if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert [n.name for n in defined if n.name[0] != "_" and not ast.get_docstring(n)] == []


@each_module
def test_no_star_imports_and_nothing_unpickled(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert [n.module for n in imports if any(a.name == "*" for a in n.names)] == []
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        function, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        unpickles = re.search(r"\b(pickle|joblib|dill)\.loads?$|\bload_learner$", function)
        assert not unpickles, f"line {call.lineno} unpickles"
        assert function != "torch.load" or given.get("weights_only") == "True", f"line {call.lineno} may unpickle"
        assert given.get("allow_pickle") != "True", f"line {call.lineno} may unpickle"


@pytest.mark.parametrize("module", [m for m, number in NUMBER.items() if number < 15])
def test_tables_need_no_torch(module):
    "Whoever only works with tables should not wait for the deep-learning stack"
    look = f"import sys, gz_nbdev.{module}; sys.exit(' '.join({{'torch', 'fastai'}} & sys.modules.keys()) or None)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"importing gz_nbdev.{module} imports {done.stderr}"


def console_scripts() -> dict[str, str]:
    "The commands that settings.ini names, and the function of each"
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(line.split("=") for line in settings["DEFAULT"]["console_scripts"].split())


@pytest.mark.parametrize("command,target", console_scripts().items())
def test_command_is_a_function(command, target):
    module, function = target.split(":")
    assert callable(getattr(import_module(module), function))
