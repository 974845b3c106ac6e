"""Build the site into _docs from the project's one _quarto.yml, with Python alone, and check it.

Whoever has Quarto can run `nbdev-docs` instead; here smalldocs renders the same pages. The build fails on a broken
link, on an exported name that its page does not document, and on warnings, but for keys that only Quarto reads.
`python .ci/docs.py` builds when something changed; `--force` always."""
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from inspect import isclass, isfunction
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_docs"
STAMP = SITE / ".built-from"
ONLY_QUARTO = ["unknown key format-links", "format commonmark is not built", "keep-md is ignored",
               "output-file is not read"]


def fingerprint() -> str:
    "One hash over everything that the site is built from"
    below = [p for folder in ("nbs", "gz_nbdev") for p in sorted((ROOT / folder).rglob("*")) if p.is_file()]
    sources = [p for p in below if not any(part[0] == "." or part == "__pycache__" for part in p.parts[len(ROOT.parts):])]
    both = hashlib.sha256()
    for path in [*sources, ROOT / "_quarto.yml", ROOT / "pyproject.toml", Path(__file__).resolve()]:
        both.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return both.hexdigest()


def processed_notebooks() -> Path:
    "The folder where nbdev leaves the notebooks for readers: hidden cells gone, each definition documented"
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    os.chdir(ROOT)  # nbdev and its worker processes look for the project here
    refresh_quarto_yml()
    done = ROOT / "_proc"
    modules = max(p.stat().st_mtime for p in (ROOT / "gz_nbdev").glob("*.py"))
    return proc_nbs(n_workers=2, force=not done.exists() or done.stat().st_mtime < modules)


def relinked(text: str, depth: int) -> str:
    "A notebook's JSON, its links to notebooks and to this site by address turned into links to the pages beside it"
    from nbdev.config import get_config, nbpath2html
    cfg = get_config(ROOT)
    text = text.replace(f"]({cfg.doc_host}{cfg.doc_baseurl}/", "](" + "../" * depth)
    text = re.sub(r"(### [\w.]+\.)__(\w+)__", r"\1\\\\_\\\\_\2\\\\_\\\\_", text)  # a method's name, not bold type
    return re.sub(r"\]\((?![a-z]+:)([^()\s#]+\.ipynb)(#[^()\s]*)?\)",
                  lambda m: f"]({nbpath2html(m[1]).as_posix()}{m[2] or ''})", text)


def stage(into: Path) -> None:
    "Put what the renderer reads into the folder `into`: each notebook under the name of its page"
    from nbdev.config import nbpath2html
    shutil.copytree(processed_notebooks(), into, dirs_exist_ok=True, ignore=shutil.ignore_patterns("_docs", ".*"))
    sidebar = into / "sidebar.yml"
    def page_of(path): return nbpath2html(path).with_suffix(".ipynb")
    sidebar.write_text(re.sub(r"\S+\.ipynb", lambda m: page_of(m[0]).as_posix(), sidebar.read_text()))
    for path in sorted(into.rglob("*.ipynb")):
        text, page = relinked(path.read_text(encoding="utf-8"), len(path.relative_to(into).parts) - 1), page_of(path)
        path.unlink()
        if page.exists(): raise SystemExit(f"two notebooks would become the page {page.relative_to(into)}")
        page.write_text(text, encoding="utf-8")


def render(source: Path) -> list[str]:
    "Render the staged folder into `SITE`; the warnings that matter"
    from smalldocs import config, site
    pages = site.Site(config.load(source), quiet=True)
    pages.out = SITE
    if SITE.exists(): shutil.rmtree(SITE)
    pages.build()
    return [w for w in pages.warnings if not any(known in w for known in ONLY_QUARTO)]


def plots_at_their_size(staged: Path) -> None:
    "Plots are stored at twice the size asked for, so that they are sharp: show them at the size asked for"
    widths = {}
    for path in staged.rglob("*.ipynb"):
        for output in (o for c in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])):
            data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
            asked = re.match(r"<Figure size (\d+)", data.get("text/plain", ""))
            if asked and "image/png" in data: widths[data["image/png"].strip()] = asked[1]
    def widen(found): return found[0] + (f' width="{widths[found[1]]}"' if found[1] in widths else "")
    for page in SITE.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r'src="data:image/png;base64,([^"]+)"', widen, text), encoding="utf-8")


def markdown_copies() -> None:
    "Each page as Markdown, at the address that nbdev writes into the docstring of its module"
    for path in SITE.rglob("*.llms.md"): shutil.copy(path, path.with_name(path.name.replace(".llms.md", ".html.md")))


def maths_offline() -> None:
    "Keep the formulas' renderer inside the site, so that it needs no network"
    from smalldocs.layout import KATEX
    pages = [p for p in SITE.rglob("*.html") if KATEX in p.read_text(encoding="utf-8")]
    if not pages: return
    version = re.search(r"katex@([\d.]+)", KATEX)[1]
    with tempfile.TemporaryDirectory() as tmp:
        command = ["npm", "install", "--silent", "--no-save", "--ignore-scripts", "--prefix", tmp, f"katex@{version}"]
        if not shutil.which("npm") or subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
            print(f"npm could not bring katex {version}: formulas in the site will need the network")
            return
        found = Path(tmp) / "node_modules/katex/dist"
        kept = SITE / "site_libs/katex"
        (kept / "contrib").mkdir(parents=True)
        for name in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js"):
            shutil.copy(found / name, kept / name)
        shutil.copytree(found / "fonts", kept / "fonts", ignore=shutil.ignore_patterns("*.ttf", "*.woff"))
    for page in pages:
        here = "../" * (len(page.relative_to(SITE).parts) - 1)
        page.write_text(page.read_text(encoding="utf-8").replace(KATEX, f"{here}site_libs/katex"), encoding="utf-8")


class Page(HTMLParser):
    "The ids of a page, and what it points at"
    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.targets = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ("id", "name") and tag != "meta": self.ids.add(value)
            if key in ("href", "src") and value: self.targets.append(value)


def broken_links(site: Path) -> list[str]:
    "Every link, picture, script and anchor of the pages below `site` that leads nowhere inside it"
    pages = {p: Page(p) for p in sorted(site.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        for target in page.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc: continue
            to = (path.parent / unquote(url.path)).resolve() if url.path else path
            if to.is_dir(): to = to / "index.html"
            if not to.is_file() or (url.fragment and to in pages and unquote(url.fragment) not in pages[to].ids):
                broken.append(f"{path.relative_to(site)}: {target} leads nowhere")
    return broken


def undocumented(site: Path) -> list[str]:
    "Every exported function and class without an entry of its own on the page of its module"
    sys.path.insert(0, str(ROOT))
    index = importlib.import_module("gz_nbdev._modidx").d["syms"]
    pages, missing = {}, []
    for module, names in index.items():
        exported = importlib.import_module(module)
        for name in getattr(exported, "__all__", []):
            thing = getattr(exported, name)
            if not ((isclass(thing) or isfunction(thing)) and thing.__module__ == module): continue
            page, _, anchor = names.get(f"{module}.{name}", ("", ""))[0].partition("#")
            path = site / page
            if page and path.is_file() and path not in pages: pages[path] = Page(path).ids
            if anchor in pages.get(path, ()): continue
            missing.append(f"{module}.{name} is exported but {page or 'no page'} does not document it")
    return missing


def build() -> None:
    "Build and check; exits with what is wrong"
    with tempfile.TemporaryDirectory() as tmp:
        staged = Path(tmp) / "site"
        stage(staged)
        warnings = render(staged)
        plots_at_their_size(staged)
    markdown_copies()
    maths_offline()
    wrong = warnings + broken_links(SITE) + undocumented(SITE)
    if wrong: raise SystemExit("The site is not right:\n" + "\n".join(wrong))
    pages = len(list(SITE.rglob("*.html")))
    STAMP.write_text(fingerprint())
    print(f"{pages} pages in {SITE.name}, every link inside it leads somewhere, every exported name is documented")


if __name__ == "__main__":
    current = STAMP.exists() and STAMP.read_text() == fingerprint()
    if current and "--force" not in sys.argv: print(f"{SITE.name} is current")
    else: build()
