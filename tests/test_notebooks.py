"""Every notebook is a test: it must run from top to bottom in a fresh process.

Cells marked `#| slow`, `#| gpu`, `#| net` or `#| real` are left out, unless the environment asks for them:
`GZ_FLAGS="slow net" pytest` runs those two kinds, `GZ_DATA=folder pytest` the `real` ones on the data in the folder."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
             if not any(part.startswith(("_", ".")) for part in p.relative_to(ROOT).parts)]

# A process of its own for each: no notebook can lean on what another one imported, and a crash ends one test only
RUN = """
import sys
from nbdev.test import test_nb
path, root, skip, force = sys.argv[1:]
passed, _ = test_nb(path, skip_flags=skip.split(), force_flags=force.split(), basepath=root)
sys.exit(not passed)
"""


def forced_flags() -> list[str]:
    "The kinds of flagged cells that the environment asks for"
    flags = os.environ.get("GZ_FLAGS", "").split()
    return flags + ["real"] * bool(os.environ.get("GZ_DATA"))


def run_notebook(path: Path) -> subprocess.CompletedProcess:
    "Run the notebook at `path` in a process of its own, as `nbdev-test` would"
    flags = [" ".join(get_config(ROOT).tst_flags), " ".join(forced_flags())]
    command = [sys.executable, "-c", RUN, str(path), str(ROOT), *flags]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook(notebook):
    result = run_notebook(ROOT / notebook)
    assert result.returncode == 0, f"{notebook} failed:\n{result.stdout[-2000:]}{result.stderr[-6000:]}"


def test_a_failing_notebook_is_named_with_its_cell(tmp_path):
    "The runner itself: without this, a runner that passes everything would pass"
    broken = tmp_path / "broken.ipynb"
    sources = ["galaxies = 1", "galaxies / 0"]
    cells = [dict(cell_type="code", id=f"c{i}", metadata={}, execution_count=None, outputs=[], source=s)
             for i, s in enumerate(sources)]
    broken.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    result = run_notebook(broken)
    assert result.returncode != 0
    assert "broken.ipynb" in result.stderr and "galaxies / 0" in result.stderr and "ZeroDivisionError" in result.stderr


def test_flagged_cells_run_when_asked_for(monkeypatch):
    monkeypatch.setenv("GZ_FLAGS", "slow net")
    monkeypatch.delenv("GZ_DATA", raising=False)
    assert forced_flags() == ["slow", "net"]
    monkeypatch.setenv("GZ_DATA", "somewhere")
    assert forced_flags() == ["slow", "net", "real"]
