"The commands as people call them: on good input, on bad input, and a second time"
import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gz_nbdev import cli
from gz_nbdev.cli import _practice, gz_check, gz_simulate, gz_tour, open_tour
from gz_nbdev.models import load_weights
from gz_nbdev.schema import InputError, get_schema
from gz_nbdev.simulate import simulate_survey
from gz_nbdev.store import Store

HOSTILE = "<img src=x onerror=alert(1)>"
QUICK = dict(epochs=1, galaxies=300, size=48, encoder="test_resnet")


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    "A small survey on disk as a user would have it: catalog.csv with votes, a label and a hostile id"
    root = tmp_path_factory.mktemp("survey")
    made = simulate_survey(160, size=48, seed=5, root=root, progress=False)
    table = made.catalog.assign(bar=(made.truth.bar_strength > 8).astype(int).to_numpy())
    table["bar"] = table.bar.where(np.arange(160) % 3 > 0, 1)  # enough of them, the pictures do not matter here
    table.loc[3, "id_str"] = HOSTILE
    table.to_csv(root / "catalog.csv", index=False)
    return root, table


def fails(capsys, command, **kwargs):
    "What the command says when it ends with exit code 2"
    with pytest.raises(SystemExit) as stop: command(**kwargs)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def toured(survey, tmp_path_factory):
    "A whole tour over the user's survey"
    root, table = survey
    out = tmp_path_factory.mktemp("tours") / "tour"
    gz_tour(out=str(out), catalog=str(root / "catalog.csv"), root=str(root), label="bar", votes=True, **QUICK)
    return out


def test_tour_leaves_what_it_promises(toured, survey):
    names = {p.name for p in toured.iterdir()}
    assert {"report.html", "training", "predictions", "representations", "class.parquet", "anomalies.parquet", "tour.json"} <= names
    ids = set(survey[1].id_str)
    assert set(Store(toured / "predictions").read().id_str) == ids == set(Store(toured / "representations").read_features()[0])
    scores = pd.read_parquet(toured / "anomalies.parquet")
    assert set(scores.id_str) == ids and scores.anomaly_score.between(0, 100).all()
    weights = load_weights(toured / "training" / "weights")
    assert weights.schema.columns == get_schema("dr5").columns and weights.info["metrics"]["epochs"] == 1


def test_tour_goes_on_where_it_was(toured, survey, capsys):
    root, _ = survey
    before = {p: p.stat().st_mtime_ns for p in toured.rglob("*.safetensors")} | {
        p: p.stat().st_mtime_ns for p in (toured / "predictions" / "shards").iterdir()}
    gz_tour(out=str(toured), catalog=str(root / "catalog.csv"), root=str(root), label="bar", votes=True, **QUICK)
    assert {p: p.stat().st_mtime_ns for p in before} == before, "a stage that was finished was done again"
    assert "report.html" in capsys.readouterr().out


def test_other_questions_need_another_folder(toured, survey, capsys):
    root, _ = survey
    said = fails(capsys, gz_tour, out=str(toured), catalog=str(root / "catalog.csv"), root=str(root), label="bar", votes=True, **QUICK | dict(seed=7))
    assert "seed was 0, now is 7" in said and "--out" in said


def test_hostile_ids_are_text_in_the_page(toured):
    class Page(HTMLParser):
        bad, text = [], ""
        def handle_starttag(self, tag, attrs):
            if any(name.startswith("on") or "javascript:" in (value or "") for name, value in attrs): self.bad.append((tag, attrs))
            if tag == "img" and not dict(attrs)["src"].startswith("data:image/"): self.bad.append((tag, attrs))
        def handle_data(self, data): self.text += data
    page = Page()
    page.feed((toured / "report.html").read_text("utf-8"))
    assert not page.bad and "catalog.csv" in page.text


def test_broken_pictures_are_set_aside(survey, tmp_path, capsys):
    root, table = survey
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    files = []
    for i, row in enumerate(table.itertuples()):
        (pictures / f"{i}.jpg").write_bytes((root / row.file_loc).read_bytes() if i not in (1, 2, 7) else b"<html>404</html>")
        files.append(f"{i}.jpg")
    (pictures / "2.jpg").unlink()
    table.assign(file_loc=files).to_csv(tmp_path / "catalog.csv", index=False)
    gz_tour(out=str(tmp_path / "out"), catalog=str(tmp_path / "catalog.csv"), root=str(pictures), **QUICK)
    failed = Store(tmp_path / "out" / "representations").failures().set_index("id_str").reason
    assert set(failed.index) == set(table.id_str.iloc[[1, 2, 7]])
    assert "missing" in failed[table.id_str[2]]
    assert len(Store(tmp_path / "out" / "representations").read_features()[0]) == len(table) - 3


@pytest.mark.parametrize("change, kwargs, words", [
    (None, dict(label="rnig"), ["no column 'rnig'"]),
    (None, dict(label="barr"), ["did you mean 'bar'"]),
    (None, dict(schema="dr55", votes=True), ["dr5"]),
    (None, dict(encoder="resnet_18"), ["resnet18"]),
    (None, dict(device="tpu"), ["device"]),
    (lambda t: t.assign(bar=1), dict(label="bar"), ["bar"]),
    (lambda t: t.assign(bar=(np.arange(len(t)) < 8).astype(int)), dict(label="bar"), ["At least 10"]),
    (lambda t: t.assign(bar=np.where(np.arange(len(t)) % 2, "yes", "maybe")), dict(label="bar"), ["0 or 1", "maybe"]),
    (lambda t: t.iloc[:0], {}, ["galax"]),
    (lambda t: pd.concat([t, t.iloc[:3]]), {}, ["SIM000005-0000000"]),
    (lambda t: t.drop(columns="file_loc"), {}, ["file_loc"]),
    (lambda t: t.drop(columns=[c for c in t if "-dr5_" in c]), dict(votes=True), ["--schema"]),
    (lambda t: t.assign(**{"bar-dr5_no": -1}), dict(votes=True), ["negative"]),
    (lambda t: t.assign(**{"bar-dr5_no": .25}), dict(votes=True), ["bar-dr5_no"]),
    (lambda t: t.assign(**{"bar-dr5_no": np.inf}), dict(votes=True), ["bar-dr5_no"]),
    (lambda t: t.assign(**{"bar-dr5_no": "many"}), dict(votes=True), ["bar-dr5_no"]),
    (lambda t: t.assign(file_loc="nowhere.jpg"), {}, ["nowhere.jpg"]),
])
def test_bad_tables_end_in_one_sentence(change, kwargs, words, survey, tmp_path, capsys):
    root, table = survey
    (table if change is None else change(table)).to_csv(tmp_path / "catalog.csv", index=False)
    said = fails(capsys, gz_tour, out=str(tmp_path / "out"), catalog=str(tmp_path / "catalog.csv"), root=str(root), **QUICK | kwargs)
    for word in words: assert word in said
    assert not (tmp_path / "out" / "training").exists(), "something was computed before the error was found"


def test_ids_that_were_floats(survey, tmp_path, capsys):
    root, table = survey
    ids = [f"5877229817413632{i:02d}" for i in range(len(table))]
    table.assign(id_str=[float(i) for i in ids]).to_parquet(tmp_path / "catalog.parquet")
    assert "float" in fails(capsys, gz_tour, out=str(tmp_path / "out"), catalog=str(tmp_path / "catalog.parquet"), root=str(root), **QUICK)


@pytest.mark.parametrize("what", ["catalog", "root", "out", "all pictures broken"])
def test_paths_that_cannot_be_used(what, survey, tmp_path, capsys):
    root, table = survey
    catalog, folder, out = str(root / "catalog.csv"), str(root), str(tmp_path / "out")
    if what == "catalog": catalog = str(tmp_path / "no.csv")
    if what == "root": folder = str(tmp_path / "nowhere")
    if what == "out":
        (tmp_path / "file").write_text("")
        out = str(tmp_path / "file" / "out")
    if what == "all pictures broken":
        folder = str(tmp_path)
        for file in table.file_loc:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(b"GIF, or so")
    said = fails(capsys, gz_tour, out=out, catalog=catalog, root=folder, **QUICK)
    assert {"catalog": "no.csv", "root": "nowhere", "out": "--out"}.get(what, "picture") in said


def test_too_few_rings_are_said_before_training(tmp_path, capsys):
    said = fails(capsys, gz_tour, out=str(tmp_path / "out"), **QUICK | dict(galaxies=60))
    assert "ring" in said and "At least" in said and not (tmp_path / "out" / "training").exists()


def test_a_torn_tour_json(tmp_path):
    (tmp_path / "tour.json").write_text('{"seed": 0')
    with pytest.raises(InputError, match="cannot be read"): open_tour(tmp_path, dict(seed=0))


def test_simulate_and_check(tmp_path, capsys):
    gz_simulate(out=str(tmp_path / "s"), galaxies=12, size=32)
    assert len(pd.read_parquet(tmp_path / "s" / "catalog.parquet")) == 12
    gz_check(catalog=str(tmp_path / "s" / "catalog.parquet"))
    assert "12 of 12 pictures" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "s" / "catalog.parquet")
    (tmp_path / "s" / table.file_loc[0]).write_bytes(b"")
    Image.new("L", (40, 40)).save(tmp_path / "s" / table.file_loc[1])
    gz_check(catalog=str(tmp_path / "s" / "catalog.parquet"))
    assert "empty file" in capsys.readouterr().out
    table.iloc[[0, 0]].to_parquet(tmp_path / "twice.parquet")
    assert "id of a row above" in fails(capsys, gz_check, catalog=str(tmp_path / "twice.parquet"), root=str(tmp_path / "s"))


def test_settings_are_written_down(toured):
    settings = json.loads((toured / "tour.json").read_text())
    assert settings["seed"] == 0 and settings["label"] == "bar" and settings["votes"] is True


def test_the_survey_to_practise_on_is_the_one_that_was_asked_for(tmp_path):
    "An earlier one in the folder is gone on with or refused, but not given in its place"
    ask = dict(galaxies=4, schema="", seed=0, device="cpu")
    first = pd.read_parquet(_practice(tmp_path, **ask))
    picture = tmp_path / "survey" / first.file_loc[0]
    drawn = picture.stat().st_mtime_ns
    pd.testing.assert_frame_equal(pd.read_parquet(_practice(tmp_path, **ask)), first)
    assert picture.stat().st_mtime_ns == drawn, "what was there was drawn again"
    more = pd.read_parquet(_practice(tmp_path, **ask | dict(galaxies=6)))
    assert len(more) == 6 and more.id_str[:4].tolist() == first.id_str.tolist()
    for other in (dict(seed=1), dict(schema="gz2")):
        with pytest.raises(InputError, match="another survey"): _practice(tmp_path, **ask | other)


@pytest.mark.parametrize("known", [True, False])
def test_who_defines_what_is_normal_is_not_listed_below_others(known):
    "Where the truth is unknown all galaxies are listed, so all are seen in the same way"
    rng, n = np.random.default_rng(0), 400
    catalog = pd.DataFrame(dict(id_str=[f"g{i}" for i in range(n)], split=np.where(np.arange(n) % 2, "test", "train")))
    truth = pd.DataFrame(dict.fromkeys(("merger", "arc", "artefact"), np.arange(n) % 40 == 1)) if known else None
    data = cli.TourData(catalog, None, None, None, truth, [])
    _, table, report = cli.judge_anomalies(data, catalog.id_str, rng.normal(size=(n, 60)))
    trains = table.nlargest(50, "anomaly_score").id_str.map(catalog.set_index("id_str").split) == "train"
    assert (report is None) != known
    assert trains.sum() > 12 or known


def test_galaxies_without_a_label_are_left_out_and_said(capsys):
    table = pd.DataFrame(dict(id_str=list("abcd"), ring=[1, None, 0, None]))
    assert cli._with_label(table, "ring").ring.tolist() == [1, 0]
    assert "left out: 2 of 4 galaxies have no 'ring'" in capsys.readouterr().out
    with pytest.raises(InputError, match="blank for every galaxy"): cli._with_label(table.assign(ring=""), "ring")
