"What is installed: the wheel, and the files that describe the package."
import ast
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from zipfile import ZipFile

import pytest

import gz_nbdev

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def settings():
    "settings.ini, as setup.py reads it"
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@pytest.fixture(scope="module")
def pyproject():
    "pyproject.toml"
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, built from a copy so that nothing is left in the project; needs no network"
    copy = tmp_path_factory.mktemp("source")
    for file in ("pyproject.toml", "settings.ini", "setup.py", "README.md", "LICENSE"): shutil.copy(ROOT / file, copy)
    shutil.copytree(ROOT / "gz_nbdev", copy / "gz_nbdev")
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "-w", copy / "out", copy]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with ZipFile(next((copy / "out").glob("*.whl"))) as built: yield built


def read(wheel: ZipFile, ending: str) -> str:
    "The text of the one file in the wheel whose name ends so"
    return wheel.read(next(n for n in wheel.namelist() if n.endswith(ending))).decode()


def test_wheel_has_every_command(wheel, settings):
    commands = read(wheel, "entry_points.txt").replace(" ", "")
    assert [c for c in settings["console_scripts"].split() if c not in commands] == []
    assert "gz_nbdev=gz_nbdev._modidx:d" in commands


def test_wheel_holds_the_package_and_nothing_else(wheel):
    files = [p for p in (ROOT / "gz_nbdev").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    here = {p.relative_to(ROOT).as_posix() for p in files}
    inside = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert inside == here


def test_metadata(wheel, settings):
    found = HeaderParser().parsestr(read(wheel, "METADATA"))
    assert found["Name"] == settings["lib_name"] and found["Version"] == gz_nbdev.__version__
    assert settings["license"] in (found["License-Expression"], found["License"])
    assert settings["author"] in (found["Author"], found["Author-email"])
    needs = {re.split(r"[<>=;! ]", line)[0] for line in found.get_all("Requires-Dist") if "extra ==" not in line}
    assert needs == {re.split(r"[<>=!]", line)[0] for line in settings["requirements"].split()}
    extras = {key.removesuffix("_requirements") for key in settings if key.endswith("_requirements")}
    assert set(found.get_all("Provides-Extra")) == extras


def test_settings_and_pyproject_agree(settings, pyproject):
    project = pyproject["project"]
    assert project["name"] == settings["lib_name"]
    assert project["requires-python"] == f">={settings['min_python']}"
    assert [a["name"] for a in project["authors"]] == [settings["author"]]
    # whatever settings.ini holds must be dynamic here, or setuptools would leave it out of the wheel without a word
    held = {"dependencies", "optional-dependencies", "scripts", "entry-points", "license", "keywords"}
    assert set(project["dynamic"]) == held | {"version"}
    assert "version" not in settings


def test_version_is_said_once(pyproject):
    version = gz_nbdev.__version__
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "gz_nbdev.__version__"}
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)[1] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def plain(name: str) -> str:
    "The one spelling of a distribution's name"
    return name.lower().replace("_", "-")


def imported(path: Path) -> set[str]:
    "The packages that a module imports when it is imported; imports inside functions may be optional"
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level: names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def needed(names: set[str]) -> set[str]:
    "Every distribution that installing `names` brings, extras left out"
    done, todo = set(), set(map(plain, names))
    while todo:
        done.add(name := todo.pop())
        try: lines = requires(name) or []
        except PackageNotFoundError: continue  # needed on another system only
        todo |= {plain(re.split(r"[^\w.-]", line)[0]) for line in lines if "extra ==" not in line} - done
    return done


def test_modules_import_only_what_is_installed_with_them(settings):
    "Whoever installs without the dev extra can import every module"
    here = needed({re.split(r"[<>=!]", line)[0] for line in settings["requirements"].split()})
    brought_by = packages_distributions()
    missing = {f"{path.name}: {name}" for path in (ROOT / "gz_nbdev").rglob("*.py") for name in imported(path)
               if name != "gz_nbdev" and not here & set(map(plain, brought_by.get(name, [])))}
    assert missing == set()
