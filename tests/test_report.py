"The page of a run: nothing in it comes from outside, nothing that people typed is ever HTML, and everybody can read it."
import re
import shutil
from functools import cache
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gz_nbdev import report
from gz_nbdev.catalog import Finding, Report
from gz_nbdev.report import Page, plot_auc_by_strength, plot_history, plot_precision, plot_roc, plot_vote_scatter
from gz_nbdev.schema import InputError

VOID = {"meta", "img", "br", "link", "input"}
HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "javascript:alert(1)", "</style><b>",
           "\" onmouseover=\"alert(1)", "' onfocus='alert(1)' autofocus='", "a\"b'c&amp;<d>", "-->", "\x00<svg/onload=alert(1)>"]


class Tree(HTMLParser):
    "What a browser makes of a page: tags with attributes, the text, and whether every element was closed"
    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"): self.words.append(data)

    def all(self, tag): return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self): return " ".join(self.words)


def pictures(n: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, 3, side, side), dtype=np.uint8)


def plot(title: str = "x"):
    fig, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0, 1], [0, 1])
    ax.set_title(title.replace("\x00", ""))
    return fig


def full_page(text: str) -> Page:
    "A page with every part there is, and `text` wherever a user can put text"
    page = Page(text, text).text(text).section(text, text)
    page.figures([dict(name=text, value=.9, interval=(.8, .95), chance=.5, chance_name=text, target=.8, note=text),
                  dict(name=text, value=text)])
    page.figure(plot(), text, text)
    page.gallery(pictures(2), [text, dict(title=text, lines=[(text, (.4, .3, .5), (8, 20)), (text, .2, text)])], text)
    page.table(pd.DataFrame({text: [text, "b"], "n": [1.5, np.nan]}, index=pd.Index([text, "x"], name=text)), text)
    page.checks(Report((Finding("error", text, 3, (text,), text), Finding("ok", text)), title=text))
    return page.section(text).download(text, text).footer({text: text, "command": text, "versions": {text: text}})


# Nothing that people typed is HTML

@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    plain, hostile = Tree(full_page("plain").html), Tree(full_page(text).html)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags], "the text made or broke an element"
    assert [sorted(a) for _, a in hostile.tags] == [sorted(a) for _, a in plain.tags], "the text made an attribute"
    assert hostile.open == []
    assert hostile.text.count(text.replace("\x00", "�")) + hostile.text.count(text) >= 15
    assert not [name for _, attrs in hostile.tags for name in attrs if name.startswith("on") or name == "style"]
    assert [a["href"] for a in hostile.all("a") if not a["href"].startswith(("#", "./"))] == []


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_a_notebook(text):
    (tag, attrs), = [t for t in Tree(full_page(text)._repr_html_()).tags]
    assert tag == "iframe" and attrs["sandbox"] == "allow-scripts" and "srcdoc" in attrs
    assert attrs["srcdoc"] == full_page(text).html


def test_every_value_is_quoted():
    for value in re.findall(r"<[a-z]+((?: [^<>\"']+(?:=\"[^\"]*\"|='[^']*')?)*)>", Page("x").figures([dict(name="a", value=1)]).html):
        assert not re.search(r"=[^\"']", re.sub(r"\"[^\"]*\"|'[^']*'", "\"\"", value))


def test_text_that_calls_itself_html_is_escaped():
    class Markup(str):
        def __html__(self): return self
    page = full_page(Markup("<b>bold</b>"))
    assert Tree(page.html).all("b") == Tree(full_page("plain").html).all("b")


def test_half_a_character_does_not_stop_the_run(tmp_path):
    assert "?.jpg" in Page("x").text("galaxy\udc80.jpg").write(tmp_path / "page.html").read_text(encoding="utf-8")


# Nothing comes from outside

def test_every_address_is_in_the_file():
    tree = Tree(full_page("plain").html)
    addresses = [v for _, attrs in tree.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "data", "action")]
    assert len(addresses) >= 6
    assert [a for a in addresses if not a.startswith(("#", "./", "data:image/"))] == []
    assert tree.all("link") == [] and "@import" not in report._STYLE and "url(" not in report._STYLE


def test_policy_names_the_style_and_the_script():
    html = full_page("plain").html
    policy = next(m["content"] for m in Tree(html).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        inside, = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        assert rules[rule] == report._hash(inside)
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.csv", "a/../../b", "\\\\server\\x", "..\\x"])
def test_links_stay_beside_the_page(path):
    with pytest.raises(InputError, match="outside the folder"): Page("x").download("file", path)


def test_a_link_to_a_strange_name_finds_its_file():
    link, = [a for a in Tree(Page("x").download("table", "out/100% of it #1?.csv").html).all("a") if "download" in a]
    assert link == {"href": "./out/100%25%20of%20it%20%231%3F.csv", "download": "100% of it #1?.csv"}


# Everybody can read it

def test_headings_pictures_and_tables_have_what_a_screen_reader_needs():
    tree = Tree(full_page("plain").html)
    heads = [tag for tag, _ in tree.tags if re.fullmatch("h[1-6]", tag)]
    assert heads == ["h1", "h2", "h2"]
    assert tree.all("html") == [{"lang": "en"}]
    assert all(image["alt"].strip() and image["width"] and image["height"] for image in tree.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in tree.all("svg"))
    assert all(th["scope"] == "col" for th in tree.all("th"))
    ids = [attrs["id"] for _, attrs in tree.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for a in tree.all("a") if a["href"][0] == "#"} <= set(ids)


def luminance(colour: str) -> float:
    "Relative luminance of #rgb or #rrggbb (WCAG)"
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    rgb = np.array([int(digits[i:i + 2], 16) for i in (0, 2, 4)]) / 255
    return float(np.where(rgb <= .04045, rgb / 12.92, ((rgb + .055) / 1.055) ** 2.4) @ [.2126, .7152, .0722])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ink", ["ink", "soft", "blue", "good", "bad", "warn"])
@pytest.mark.parametrize("ground", ["page", "card"])
def test_words_have_contrast(scheme, ink, ground):
    block = re.findall(r":root \{(.*?)\}", report._STYLE, flags=re.DOTALL)[scheme]
    colours = dict(re.findall(r"--(\w+):\s*(#\w+);", block))
    low, high = sorted(luminance(colours[name]) for name in (ink, ground))
    assert (high + .05) / (low + .05) >= 4.5


def test_severity_and_verdict_are_words():
    tree = Tree(full_page("plain").html)
    assert "✗ error" in tree.text and "✓ fine" in tree.text
    assert "▲ better than the plain; target reached" in tree.text


# Numbers

@pytest.mark.parametrize("value,interval,better,said", [
    (.9, (.8, .95), "higher", "better than chance"), (.6, (.4, .7), "higher", "not distinguishable from chance"),
    (.3, (.2, .4), "higher", "worse than chance"), (.3, (.2, .4), "lower", "better than chance"),
    (.5, None, "higher", "not distinguishable from chance"), (.7, (.6, .8), "lower", "worse than chance")])
def test_verdict_looks_at_the_interval(value, interval, better, said):
    page = Page("x").figures([dict(name="n", value=value, interval=interval, chance=.5, better=better)])
    assert said in Tree(page.html).text


@pytest.mark.parametrize("better,target,said", [("higher", .9, "reached"), ("higher", .91, "missed"),
                                                ("lower", .9, "reached"), ("lower", .89, "missed")])
def test_target_that_is_met_exactly_is_reached(better, target, said):
    page = Page("x").figures([dict(name="n", value=.9, chance=.5, better=better, target=target)])
    assert f"target {said}" in Tree(page.html).text


@pytest.mark.parametrize("value", [0, 0., 1e-9, -.3, .5, 1, 7.2, 1234567., 10 ** 12])
def test_everything_on_a_scale_is_inside_it(value):
    html = Page("x").figures([dict(name="n", value=value, interval=(value - .1, value + .1), chance=.5, target=.6)]).html
    places = [float(p) for p in re.findall(r"(?:cx|x1|x2|x|width)=\"([-\d.]+)%\"", html)]
    assert len(places) >= 8 and min(places) >= 0 and max(places) <= 100


@pytest.mark.parametrize("value", [np.nan, "3 hours"])
def test_a_value_that_is_no_number_has_no_scale(value):
    tree = Tree(Page("x").figures([dict(name="n", value=value, chance=.5)]).html)
    assert tree.all("svg") == [] and ("–" in tree.text or "3 hours" in tree.text)


@pytest.mark.parametrize("card,said", [(dict(name="x"), "needs a 'value'"), (dict(value=1), "needs a 'name'"),
                                       (dict(name="x", value=1, chanc=.5), "did you mean 'chance'"),
                                       (dict(name="x", value=1, better="up"), "'higher' or 'lower'")])
def test_a_card_that_cannot_be_drawn_is_refused(card, said):
    with pytest.raises(InputError, match=said): Page("x").figures([card])


# Tables

def test_numbers_keep_their_digits_for_sorting():
    df = pd.DataFrame(dict(id_str=["a", "b", "c"], score=[.123456789, np.nan, 2.], votes=[1200, 3, 4], ring=[True, False, True]))
    html = Page("x").table(df).html
    assert re.findall(r"data-v=\"([^\"]*)\"", html) == ["0.123456789", "1200.0", "", "3.0", "2.0", "4.0"]
    text = Tree(html).text
    assert "0.12" in text and "1,200" in text and "–" in text and "True" in text
    assert len(re.findall('<th class="number"|<th scope="col" class="number"', html)) == 2


@pytest.mark.parametrize("df", [pd.DataFrame(), pd.DataFrame(dict(a=[])), pd.DataFrame(dict(a=[None, "b"])),
                                pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), pd.DataFrame(dict(a=[np.inf, 1.])),
                                pd.DataFrame(dict(a=pd.array([1, None], dtype="Int64"), b=pd.array([.5, None], dtype="Float64"))),
                                pd.DataFrame(dict(a=pd.to_datetime(["2026-01-01"]))), pd.DataFrame(dict(a=[[1], {2}]))])
def test_any_table_can_be_shown(df):
    tree = Tree(Page("x").table(df).html)
    assert len(tree.all("tr")) == len(df) + 1 and len(tree.all("th")) == df.shape[1] and len(tree.all("td")) == df.size


def test_format_of_a_column():
    df = pd.DataFrame(dict(p=[.00123], q=[.00456], n=[7]))
    text = Tree(Page("x").table(df, fmt=dict(p=".5f")).table(df, fmt=".1e").html).text
    assert "0.00123" in text and "1.2e-03" in text and "4.6e-03" in text and " 7 " in text


# Pictures

def test_gallery_takes_tensors_and_shrinks_large_pictures():
    torch = pytest.importorskip("torch")
    page = Page("x").gallery(torch.from_numpy(pictures(3, 400)), ["a", "b", "c"])
    images = Tree(page.html).all("img")
    assert [(i["width"], i["height"]) for i in images] == [("256", "256")] * 3
    assert all(i["src"].startswith("data:image/jpeg;base64,") for i in images)


def test_a_fraction_nobody_predicted_is_a_dash():
    page = Page("x").gallery(pictures(1), [dict(title="g", lines=[("yes", np.nan, (0, 0))])])
    tree = Tree(page.html)
    assert "–" in tree.text and "nan" not in page.html
    assert [r for r in tree.all("rect") if r.get("class") == "said" and "%" in r["width"]] == []


@pytest.mark.parametrize("images,captions,said", [
    (pictures(2).astype(np.float32), ["a", "b"], "uint8"), (pictures(2)[:, :1], ["a", "b"], r"\(2, 1, 24, 24\)"),
    (pictures(1)[0], ["a"], r"\(3, 24, 24\)"), (pictures(2), ["a"], "2 galaxies, but 1 captions")])
def test_a_gallery_says_what_is_wrong(images, captions, said):
    with pytest.raises(InputError, match=said): Page("x").gallery(images, captions)


def test_figures_are_closed_and_need_words():
    fig = plot()
    with pytest.raises(InputError, match="no alt text"): Page("x").figure(fig, "caption", " ")
    assert plt.fignum_exists(fig.number)
    Page("x").figure(fig, "caption", "a rising line")
    assert not plt.fignum_exists(fig.number)


def test_figures_with_many_points_become_pictures():
    fig, ax = plt.subplots(figsize=(3, 3))
    ax.plot(*np.random.default_rng(0).random((2, 20_000)), ".")
    image, = Tree(Page("x").figure(fig, "", "points").html).all("img")
    assert image["src"].startswith("data:image/png") and image["class"] == "plot"


def test_pictures_of_galaxies_are_not_inverted_in_the_dark():
    fig, ax = plt.subplots(figsize=(2, 2))
    ax.imshow(pictures(1)[0].transpose(1, 2, 0))
    image, = Tree(Page("x").figure(fig, "", "a galaxy").html).all("img")
    assert "plot" not in image.get("class", "")


# The file

def test_the_same_results_give_the_same_bytes(tmp_path):
    files = [full_page("plain").write(tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert files[0] == files[1]


def test_a_page_is_replaced_whole(tmp_path):
    path = Page("first").write(tmp_path / "page.html")
    Page("second").write(path)
    assert "second" in path.read_text() and [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(InputError, match="cannot be written"): Page("x").write(tmp_path / "no such folder" / "page.html")


def test_a_page_that_would_be_too_large_says_so_and_stays_as_it_was():
    page = Page("x").text("before")
    with pytest.raises(InputError, match="show fewer galaxies"): page.text("galaxy " * 800_000)
    assert len(page.html) < 50_000 and "before" in page.html


# Plots

RNG = np.random.default_rng(1)
STRENGTH = np.exp(RNG.uniform(0, np.log(60), 600))
LABEL = RNG.random(600) < .2
SCORE = RNG.normal(size=600) + LABEL * np.log(STRENGTH)


@cache
def roc() -> Figure: return plot_roc(LABEL, SCORE, "Rings", draws=50)


@cache
def by_strength() -> Figure: return plot_auc_by_strength(LABEL, SCORE, STRENGTH, [1, 4, 16, 64])


@cache
def precision() -> Figure: return plot_precision(dict(score=SCORE, other=-SCORE), LABEL, draws=50)


def test_precision_of_equal_scores_is_the_base_rate():
    "And its band is that of the galaxies drawn, wherever they stand in the table"
    label = np.arange(400) < 100
    for order in (slice(None), slice(None, None, -1)):
        fig = plot_precision(dict(flat=np.ones(400)), label[order], draws=100)
        (ax,) = fig.axes
        np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), .25)
        low, high = np.quantile(ax.collections[0].get_paths()[0].vertices[1:-1, 1], [.1, .9])
        assert .2 < low < .23 and .27 < high < .3


def said(fig: Figure) -> str:
    "Every word of a figure"
    fig.draw_without_rendering()
    return " ".join(t.get_text() for t in fig.findobj(plt.Text))


def test_plots_leave_nothing_open_and_draw_chance():
    before = plt.get_fignums()
    figs = [roc(), by_strength(), precision()]
    assert plt.get_fignums() == before
    assert "chance" in said(figs[0]) and "chance" in said(figs[1]) and "base rate" in said(figs[2])


def test_roc_states_the_area_of_scikit_learn():
    from sklearn.metrics import roc_auc_score
    assert f"area {roc_auc_score(LABEL, SCORE):.3f}" in said(roc())


def test_area_by_strength_is_against_all_others():
    from sklearn.metrics import roc_auc_score
    line = next(line for line in by_strength().axes[0].lines if line.get_label() == "of this strength")
    for (low, high), area in zip([(1, 4), (4, 16), (16, 64)], line.get_ydata()):
        use = ~LABEL | ((STRENGTH >= low) & (STRENGTH < high))
        assert area == pytest.approx(roc_auc_score(LABEL[use], SCORE[use]))
    assert list(line.get_ydata()) == sorted(line.get_ydata())


def test_bins_with_too_few_have_no_point():
    label, strength = LABEL.copy(), np.where(LABEL, 2., np.nan)
    strength[np.flatnonzero(LABEL)[:4]] = 20
    fig = plot_auc_by_strength(label, SCORE, strength, [1, 4, 16, 64])
    line = next(line for line in fig.axes[0].lines if line.get_label() == "of this strength")
    assert len(line.get_xdata()) == 1 and "n=4" in said(fig) and "n=0" in said(fig)


def test_precision_is_that_of_the_list():
    line = next(line for line in precision().axes[0].lines if line.get_label() == "score")
    assert line.get_ydata()[9] == LABEL[np.argsort(-SCORE)[:10]].mean()
    assert line.get_ydata()[-1] == pytest.approx(LABEL.mean())


def test_scatter_leaves_out_what_nobody_was_asked():
    p = pd.DataFrame(dict(a=[.1, .9, .5], b=[.2, .3, .4]))
    t = pd.DataFrame(dict(a=[.2, .8, np.nan], b=[np.nan] * 3))
    words = said(plot_vote_scatter(p, t))
    assert "error 0.100" in words and "n = 2" in words and "nobody was asked" in words
    assert "error 0.100" in said(plot_vote_scatter(p.a.to_numpy(), t.a.to_numpy(), "one"))


@pytest.mark.parametrize("call,message", [
    (lambda: plot_history(pd.DataFrame(dict(train_los=[1], valid_loss=[1]))), "did you mean 'train_los'"),
    (lambda: plot_vote_scatter(pd.DataFrame(dict(bar=[.1])), pd.DataFrame(dict(bars=[.1]))), "did you mean 'bars'"),
    (lambda: plot_roc([0, 1], [.1, np.nan]), "not finite"), (lambda: plot_roc([0, 1, 1], [.1, .2]), "3 labels for 2 scores"),
    (lambda: plot_auc_by_strength(LABEL, SCORE, STRENGTH[:5], [1, 2]), "5 strengths for 600 galaxies"),
    (lambda: plot_auc_by_strength(LABEL, SCORE, STRENGTH, [4, 2]), "must rise"),
    (lambda: plot_precision({}, LABEL), "no list to look at"), (lambda: plot_precision(dict(a=SCORE), LABEL & False), "same label")])
def test_plots_say_what_is_wrong(call, message):
    with pytest.raises(InputError, match=message): call()


# In a browser

@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_in_a_browser(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    page = full_page(HOSTILE[0]).section("Order").table(pd.DataFrame(dict(name=["b10", "b9", "a"], value=[2., np.nan, 10.])))
    path, asked, shown = page.write(tmp_path / "page.html"), [], []
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        tab = browser.new_page(viewport=dict(width=390, height=800))
        tab.on("request", lambda r: asked.append(r.url))
        tab.on("dialog", lambda d: (shown.append(d.message), d.dismiss()))
        tab.goto(path.as_uri())
        column = "[...document.querySelectorAll('#s3 tbody tr')].map(row => row.cells[{}].textContent)"
        orders = []
        for i in (1, 1, 0):
            tab.click(f"#s3 th:nth-child({i + 1}) button")
            orders.append(tab.evaluate(column.format(i)))
        slipped_in = "(() => {const s = document.createElement('script'); s.textContent = 'window.ran = 1'; " \
                     "document.body.append(s); return window.ran ?? 0})()"
        ran, width = tab.evaluate(slipped_in), tab.evaluate("document.documentElement.scrollWidth")
        loaded = tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        browser.close()
    assert orders == [["2.0", "10.0", "–"], ["10.0", "2.0", "–"], ["a", "b9", "b10"]]
    assert (ran, width, loaded, shown) == (0, 390, True, [])
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_an_interval_without_ends_is_left_out():
    page = Page("x").figures([dict(name="n", value=1., interval=(0., np.inf), chance=.5), dict(name="m", value=2., interval=(np.nan, 3.), chance=.5)])
    assert "90%" not in page.html and "inf" not in page.html


def test_blank_labels_are_not_of_the_class():
    with pytest.raises(InputError, match="2 of 5 labels are blank"): plot_roc([1, 0, np.nan, np.nan, 0], [5., 4, 3, 2, 1])
