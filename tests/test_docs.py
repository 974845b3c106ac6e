"The site builds from a clean checkout, its checks catch what they should, and it works in a browser without a network."
import functools
import http.server
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from nbdev.config import nbpath2html

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("docs")  # one worker builds the site, once
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def docs():
    "The script that builds the site"
    spec = importlib.util.spec_from_file_location("docs", ROOT / ".ci" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(docs):
    "The built site; it is built here only where it is not current"
    command = [sys.executable, ROOT / ".ci" / "docs.py"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return docs.SITE


def test_every_notebook_is_a_page(site):
    notebooks = [p.relative_to(ROOT / "nbs") for p in (ROOT / "nbs").rglob("*.ipynb")]
    pages = {nbpath2html(p) for p in notebooks if not any(part[0] in "_." for part in p.parts)}
    assert pages <= {p.relative_to(site) for p in site.rglob("*.html")}


def test_docstrings_point_at_pages(site):
    for path in (ROOT / "gz_nbdev").glob("*.py"):
        found = re.search(r"^Docs: \S+/gz_nbdev/(\S+?)\W*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if path.name[0] != "_": assert (site / found[1]).is_file(), f"the docstring of {path.name} points at {found[1]}"


def test_a_broken_link_is_found(docs, tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#here">good</a> <a href="b.html#no">bad</a> <img src="none.png">')
    (tmp_path / "b.html").write_text('<h2 id="here">Here</h2> <a href="https://example.org/none">not ours to check</a>')
    assert docs.broken_links(tmp_path) == ["a.html: b.html#no leads nowhere", "a.html: none.png leads nowhere"]


def test_an_undocumented_name_is_found(docs, tmp_path):
    message = "gz_nbdev.losses.question_nll is exported but losses.html does not document it"
    assert message in docs.undocumented(tmp_path)


def test_links_lead_to_pages(docs):
    def moved(link): return docs.relinked(f"[a]({link})", 1)
    assert moved("30_losses.ipynb#why") == "[a](losses.html#why)"
    assert moved("../05_catalog.ipynb") == "[a](../catalog.html)"
    assert moved("https://gz-nbdev.github.io/gz_nbdev/losses.html") == "[a](../losses.html)"
    assert moved("https://example.org/1_x.ipynb") == "[a](https://example.org/1_x.ipynb)"


@pytest.fixture(scope="module")
def address(site):
    "The site, served on this machine"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    "A browser without a window"
    if not CHROMIUM: pytest.skip("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    "An empty page that reaches this machine only; `.wrong` holds its errors, `.others` what it asked of other machines"
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.wrong, page.others = [], []
    def elsewhere(route):
        page.others.append(route.request.url)
        route.abort()
    page.route(lambda url: not url.startswith((address, "data:", "blob:")), elsewhere)
    def said(message):
        if message.type == "error" and message.location.get("url") not in page.others: page.wrong.append(message.text)
    page.on("console", said)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    yield page
    page.close()


def test_every_page_opens_without_an_error(page, site, address):
    for path in sorted(site.rglob("*.html")):
        page.goto(address + path.relative_to(site).as_posix())
        assert page.locator("h1").count() >= 1, f"{path.name} has no title"
        assert page.wrong == [], f"{path.name}: {page.wrong}"
        empty = "all => all.filter(i => i.src.startsWith(location.origin) && !i.naturalWidth).map(i => i.src)"
        assert page.locator("main img").evaluate_all(empty) == []


def test_pages_need_no_network(page, site, address):
    for path in sorted(site.rglob("*.html")): page.goto(address + path.relative_to(site).as_posix())
    scripts = [url for url in page.others if url.endswith((".js", ".css", ".woff2"))]
    if any("katex" in url for url in scripts) and not (site / "site_libs" / "katex").exists():
        pytest.skip("npm could not bring katex")
    assert scripts == []


def test_search_finds_the_schema(page, address):
    page.goto(address)
    page.get_by_role("searchbox").first.fill("Schema")
    page.locator(".search-result", has_text="Schema").first.wait_for(timeout=10_000)
    page.locator(".search-result").first.click()
    page.wait_for_load_state()
    assert "schema.html" in page.url
    assert page.wrong == []


def test_no_page_is_wider_than_a_telephone(page, site, address):
    page.set_viewport_size({"width": 390, "height": 800})
    for path in sorted(site.rglob("*.html")):
        page.goto(address + path.relative_to(site).as_posix())
        assert page.evaluate("document.documentElement.scrollWidth") <= 391, f"{path.name} scrolls sideways"
