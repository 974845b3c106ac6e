"""What is written from the notebooks: the map in nbs/index.ipynb, nbs/sidebar.yml, and README.md with its pictures.

`python .ci/readme.py` writes them; a test asks `outputs()` whether the committed files are current."""
import base64
import json
import posixpath
import re
from pathlib import Path

from nbdev.config import get_config, nbpath2html

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
INDEX = NBS / "index.ipynb"
SECTIONS = {"Tutorials": "tutorials", "Explanations": "explanations", "Library": "."}  # heading -> folder under nbs/
MAP_CELL = "map"  # the id of the cell of the index that this script writes
PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def cell_text(cell: dict) -> str:
    "The source of a notebook cell as one string"
    return "".join(cell["source"])


def read(path: Path) -> dict:
    "The notebook at `path`"
    return json.loads(path.read_text(encoding="utf-8"))


def title_and_line(path: Path) -> tuple[str, str]:
    "The `# Title` and the `> one line` that every notebook opens with"
    text = next((cell_text(c) for c in read(path)["cells"] if c["cell_type"] == "markdown"), "")
    found = re.match(r"# (.+)\n+> (.+)", text)
    if not found: raise ValueError(f"{path.relative_to(ROOT)} must open with '# Title', an empty line and '> one line'")
    return found[1].strip(), found[2].strip()


def notebooks(folder: str) -> list[Path]:
    "The notebooks of one folder in their order, as paths from nbs/"
    return [p.relative_to(NBS) for p in sorted((NBS / folder).glob("*.ipynb")) if p.name[0] not in "_." and p != INDEX]


def map_of_notebooks() -> str:
    "A table for each section: what each notebook is about, in its own words"
    parts = []
    for heading, folder in SECTIONS.items():
        rows = [f"| [{title}]({path.as_posix()}) | {line} |" for path in notebooks(folder)
                for title, line in [title_and_line(NBS / path)]]
        if rows: parts.append("\n".join([f"### {heading}", "", "| | |", "|:--|:--|", *rows]))
    return "\n\n".join(["## The notebooks", *parts])


def sidebar() -> str:
    "The sidebar of the site: the index, then a section for each folder"
    lines = ["website:", "  sidebar:", "    contents:", "      - index.ipynb"]
    for heading, folder in SECTIONS.items():
        if paths := notebooks(folder):
            lines += [f"      - section: {heading}", "        contents:"]
            lines += [f"          - {path.as_posix()}" for path in paths]
    return "\n".join(lines) + "\n"


def index_with_map() -> dict:
    "The index notebook with the map filled in"
    nb = read(INDEX)
    cell = next(c for c in nb["cells"] if c.get("id") == MAP_CELL)
    cell["source"] = map_of_notebooks().splitlines(keepends=True)
    return nb


def page_url(link: str) -> str:
    "The page of the site for a link to a notebook, written relative to nbs/"
    cfg = get_config(ROOT)
    path, hash_, anchor = link.partition("#")
    page = posixpath.normpath(nbpath2html(path).as_posix())
    return f"{cfg.doc_host}{cfg.doc_baseurl}/{page}{hash_}{anchor}"


def readme_links(text: str) -> str:
    "Markdown of the index as it must read on the front page: notebooks become pages of the site, files are below nbs/"
    def replace(found):
        link = found[2]
        if re.match(r"[a-z]+:|#", link): return found[0]
        return f"{found[1]}({page_url(link) if '.ipynb' in link else 'nbs/' + link})"
    return re.sub(r"(\])\(([^)\s]+)\)", replace, text)


def directives(source: str) -> tuple[set[str], str]:
    "The `#|` lines at the top of a cell, without spaces, and the code below them"
    lines = source.splitlines()
    top = [line for line in lines if line.startswith("#|")]
    return {line[2:].replace(" ", "") for line in top}, "\n".join(line for line in lines if line not in top).strip()


def readme() -> dict[Path, bytes]:
    "README.md and the pictures that it shows, from the index notebook and its stored outputs"
    parts, files = [], {}
    for cell in index_with_map()["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(readme_links(cell_text(cell)))
            continue
        flags, code = directives(cell_text(cell))
        if "hide" in flags or not code: continue
        if "echo:false" not in flags: parts.append(f"```python\n{code}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            kind = next((k for k in PICTURES if k in data), None)
            if kind:
                path = NBS / "images" / f"index-{cell['id']}.{PICTURES[kind]}"
                files[path] = base64.b64decode("".join(data[kind]))
                alt = re.search(r'^#\| fig-alt: *"?(.*?)"?$', cell_text(cell), flags=re.MULTILINE)
                parts.append(f"![{alt[1] if alt else ''}]({path.relative_to(ROOT).as_posix()})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```\n{text}\n```")
    note = "<!-- Written from nbs/index.ipynb by .ci/readme.py: edit the notebook. -->"
    return files | {ROOT / "README.md": ("\n\n".join([note, *parts]) + "\n").encode()}


def outputs() -> dict[Path, bytes]:
    "Every file that is written from the notebooks, with what must stand in it"
    index = json.dumps(index_with_map(), sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    return {INDEX: index.encode(), NBS / "sidebar.yml": sidebar().encode()} | readme()


def stale() -> list[str]:
    "The files that differ from what the notebooks say"
    return [path.relative_to(ROOT).as_posix() for path, content in outputs().items()
            if not path.exists() or path.read_bytes() != content]


if __name__ == "__main__":
    changed, texts = stale(), outputs()
    for name in changed:
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(texts[ROOT / name])
    print("\n".join(f"wrote {name}" for name in changed) or "README.md, the sidebar and the map are current")
