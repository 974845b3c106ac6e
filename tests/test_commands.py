"The commands of single steps as people call them: from every form of catalog, killed and started again, and on bad input"
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from gz_nbdev import cli
from gz_nbdev.catalog import read_catalog
from gz_nbdev.cli import gz_anomaly, gz_finetune, gz_predict, gz_represent, gz_search, gz_train
from gz_nbdev.data import ArrayImages, View, write_hub_folder
from gz_nbdev.finetune import load_finder
from gz_nbdev.models import GalaxyModel, create_encoder, load_weights, save_weights
from gz_nbdev.represent import Plan
from gz_nbdev.schema import get_schema
from gz_nbdev.simulate import simulate_survey
from gz_nbdev.store import Store, sha256_file

QUICK = dict(weights="test_resnet", size=32, epochs=2)
DR5 = get_schema("dr5")


def fails(capsys, command, **kwargs):
    "What the command says when it ends with exit code 2"
    with pytest.raises(SystemExit) as stop: command(**kwargs)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "error: " in said and "Traceback" not in said
    return said.split("error: ", 1)[1]


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    "A hundred galaxies on disk, with a table of votes"
    root = tmp_path_factory.mktemp("survey")
    simulate_survey(100, size=48, seed=3, root=root, progress=False)
    read_catalog(root / "catalog.parquet").to_csv(root / "catalog.csv", index=False)
    return root


@pytest.fixture(scope="module")
def trained(survey, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    gz_train(out=str(out), catalog=str(survey / "catalog.csv"), **QUICK)
    return out


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    "The 98 columns of Galaxy Zoo DESI, each galaxy in one of three campaigns"
    desi = get_schema("gz_desi")
    made = simulate_survey(60, size=48, seed=4, schema=desi, progress=False)
    votes, campaigns = made.catalog.copy(), ("dr12", "dr5", "dr8")
    for i, name in enumerate(campaigns): votes.loc[np.arange(60) % 3 != i, get_schema(name).columns] = 0
    folder = tmp_path_factory.mktemp("hub") / "gz_desi"
    write_hub_folder(votes, ArrayImages(votes.id_str, made.images), folder, "Simulated", "cc-by-4.0", "Cite it.")
    return folder


def changed(survey, tmp_path, **columns):
    "The path of the table with other columns; None leaves one out"
    table = pd.read_csv(survey / "catalog.csv", dtype=dict(id_str=str))
    for name, values in columns.items():
        if values is None: del table[name]
        else: table[name] = values
    table.to_csv(tmp_path / "changed.csv", index=False)
    return str(tmp_path / "changed.csv")


def test_training_leaves_what_it_promises(trained, capsys):
    weights = load_weights(trained / "weights")
    assert weights.schema.columns == DR5.columns and weights.view.size == 32
    assert len(weights.temperature) == len(DR5.questions) and "temperature" in (trained / "weights" / "README.md").read_text()
    history = pd.read_csv(trained / "history.csv", index_col=0)
    assert len(history) == 2 and {f"{q.name}_loss" for q in DR5.questions} <= set(history)
    losses = history[[f"{q.name}_loss" for q in DR5.questions]].sum(axis=1)
    np.testing.assert_allclose(losses, history.valid_loss, rtol=1e-3)


def test_finished_training_is_not_done_again(trained, survey, capsys):
    before = sha256_file(trained / "weights" / "gz.json")
    gz_train(out=str(trained), catalog=str(survey / "catalog.csv"), **QUICK)
    assert sha256_file(trained / "weights" / "gz.json") == before and "gz-predict" in capsys.readouterr().out


def test_predictions_from_a_table_a_folder_and_an_ensemble(trained, survey, tmp_path, capsys):
    two = f"{trained / 'weights'},{trained / 'weights'}"
    for name, catalog, weights in (("table", survey / "catalog.csv", trained / "weights"), ("folder", survey / "images", trained / "weights"),
                                   ("two", survey / "catalog.csv", two)):
        gz_predict(out=str(tmp_path / name), catalog=str(catalog), weights=str(weights))
    assert "100 written + 0 quarantined = 100 galaxies" in capsys.readouterr().out
    tables = {name: pd.read_parquet(tmp_path / name / "predictions.parquet").set_index("id_str").sort_index() for name in ("table", "folder", "two")}
    assert set(tables["table"].index) == set(pd.read_csv(survey / "catalog.csv", dtype=str).id_str) == set(tables["folder"].index)
    for other in ("folder", "two"): np.testing.assert_allclose(tables["table"], tables[other], rtol=1e-4, atol=1e-5)
    assert {f"{c}_fraction{end}" for c in DR5.columns for end in ("", "_lower90", "_upper90")} <= set(tables["table"])


@pytest.mark.parametrize("form", ["csv", "fits", "vot"])
def test_published_form_in_every_format(trained, survey, tmp_path, form):
    gz_predict(out=str(tmp_path), catalog=str(survey / "catalog.csv"), weights=str(trained / "weights"), table=form, published=True)
    gz_predict(out=str(tmp_path), catalog=str(survey / "catalog.csv"), weights=str(trained / "weights"), published=True)
    back, first = read_catalog(tmp_path / f"predictions.{form}"), pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(back.id_str) == list(first.id_str) and "smooth-or-featured_smooth_fraction" in back
    np.testing.assert_allclose(back["bar_proportion_volunteers_asked"].astype(float), first["bar_proportion_volunteers_asked"], rtol=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_all_98_columns_from_a_hub_data_set(hub_folder, tmp_path, stream, capsys):
    gz_train(out=str(tmp_path / "run"), catalog=str(hub_folder), stream=stream, **QUICK)
    said = capsys.readouterr().out
    assert "cc-by-4.0" in said and "Cite it." in said, "licence and conditions are shown before the data are used"
    weights = load_weights(tmp_path / "run" / "weights")
    assert len(weights.schema.columns) == 98 and "cc-by-4.0" in (tmp_path / "run" / "weights" / "README.md").read_text()
    gz_predict(out=str(tmp_path / "all"), catalog=str(hub_folder), stream=stream, weights=str(tmp_path / "run" / "weights"))
    table = pd.read_parquet(tmp_path / "all" / "predictions.parquet")
    assert len(table) == 60 and sum(c.endswith("_fraction") for c in table) == 98 and np.isfinite(table.drop(columns="id_str")).all(axis=None)


def killed_when(tmp_path, command, seen, **arguments):
    "Run a command in a process of its own, and kill -9 it as soon as `seen()`; whether it was still at work"
    script, words = tmp_path / "command.py", [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    script.write_text(f"from gz_nbdev.cli import {command}\n{command}()\n")
    with subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env=os.environ | dict(OMP_NUM_THREADS="1")) as process:
        end = time.monotonic() + 120
        while process.poll() is None and not seen() and time.monotonic() < end: time.sleep(.01)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert time.monotonic() < end, "it never came to where it was to be killed"
    return alive


def test_killed_in_training_and_in_prediction_the_table_is_the_same(survey, tmp_path):
    "From nothing to a table, with and without two kills on the way"
    final, catalog = {}, str(survey / "catalog.csv")
    for name in ("undisturbed", "killed"):
        out, found = tmp_path / name, tmp_path / f"{name}_predictions"
        train = dict(out=str(out), catalog=catalog, weights="test_resnet", size=32, epochs=12)
        predict = dict(out=str(found), catalog=catalog, weights=str(out / "weights"), passes=2)
        if name == "killed":
            assert killed_when(tmp_path, "gz_train", lambda: any(out.glob("checkpoints/*.safetensors")), **train), "too quick to be killed"
            assert not (out / "weights" / "gz.json").exists()
        gz_train(**train)
        if name == "killed":
            assert killed_when(tmp_path, "gz_predict", lambda: (found / "store" / "manifest.jsonl").exists(), **predict), "too quick"
        gz_predict(**predict)
        final[name] = pd.read_parquet(found / "predictions.parquet").sort_values("id_str", ignore_index=True)
        assert sha256_file(out / "weights" / "model.safetensors") == sha256_file(tmp_path / "undisturbed" / "weights" / "model.safetensors")
    pd.testing.assert_frame_equal(final["undisturbed"], final["killed"], check_exact=True)


BAD_TABLES = {
    "a campaign column missing": ({"bar-dr5_weak": None}, ["bar-dr5_weak", "missing"]),
    "fractions instead of counts": ({"bar-dr5_weak": .25}, ["bar-dr5_weak", "whole"]),
    "text instead of counts": ({"bar-dr5_weak": "many"}, ["bar-dr5_weak", "many"]),
    "negative counts": ({"bar-dr5_weak": -1}, ["negative"]),
    "nobody asked about anything": (dict.fromkeys(DR5.columns, 0), ["no galaxy has any vote"]),
}


@pytest.mark.parametrize("columns, said", BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_votes_end_before_any_training(survey, tmp_path, capsys, columns, said):
    message = fails(capsys, gz_train, out=str(tmp_path / "run"), catalog=changed(survey, tmp_path, **columns), root=str(survey), **QUICK)
    assert all(part in message for part in said), message
    assert not (tmp_path / "run" / "weights").exists()
    assert not (tmp_path / "run" / "cache").exists(), "pictures were decoded before the votes were looked at"


def test_children_that_outvote_their_parents_are_said(survey, tmp_path, capsys):
    "More votes on a question than people who were led to it: odd, and not for us to mend"
    gz_train(out=str(tmp_path / "run"), catalog=changed(survey, tmp_path, **{"bar-dr5_weak": 400}), root=str(survey), **QUICK)
    said = capsys.readouterr().out
    assert "bar-dr5" in said and "more" in said and "100" in said, said


def test_a_hub_data_set_without_votes(survey, tmp_path, capsys):
    made = simulate_survey(12, size=48, seed=4, progress=False)
    table = made.catalog[["id_str"]].assign(redshift=.1)
    write_hub_folder(table, ArrayImages(table.id_str, made.images), tmp_path / "hub", "No votes", "cc0-1.0")
    message = fails(capsys, gz_train, out=str(tmp_path / "run"), catalog=str(tmp_path / "hub"), **QUICK)
    assert "votes" in message and "redshift" in message


def test_weights_that_do_not_fit(trained, survey, tmp_path, capsys):
    catalog = str(survey / "catalog.csv")
    other, gz2 = tmp_path / "other", tmp_path / "gz2"
    gz_train(out=str(other), catalog=catalog, **QUICK | dict(size=40, epochs=1))
    said = fails(capsys, gz_predict, out=str(tmp_path / "p"), catalog=catalog, weights=f"{trained / 'weights'},{other / 'weights'}")
    assert "view" in said and "40" in said and "32" in said
    gz_train(out=str(gz2), galaxies=40, schema="gz2", **QUICK | dict(epochs=1))
    said = fails(capsys, gz_predict, out=str(tmp_path / "p"), catalog=catalog, weights=f"{trained / 'weights'},{gz2 / 'weights'}")
    assert "gz2" in said or "questions" in said
    gz_predict(out=str(tmp_path / "first"), catalog=catalog, weights=str(trained / "weights"))
    rows = len(Store(tmp_path / "first" / "store"))
    said = fails(capsys, gz_predict, out=str(tmp_path / "first"), catalog=catalog, weights=str(other / "weights"))
    assert "another folder" in said and len(Store(tmp_path / "first" / "store")) == rows


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "model.ckpt"])
def test_pickled_weights_are_never_opened(survey, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    for command in (gz_predict, gz_train):
        said = fails(capsys, command, out=str(tmp_path / "out"), catalog=str(survey / "catalog.csv"), weights=str(tmp_path / name))
        assert "safetensors" in said or "Pickled" in said
    assert not (tmp_path / "hacked").exists()


def test_weights_of_a_later_version(trained, survey, tmp_path, capsys):
    later = tmp_path / "later"
    shutil.copytree(trained / "weights", later)
    info = json.loads((later / "gz.json").read_text())
    (later / "gz.json").write_text(json.dumps(info | dict(format=99)))
    said = fails(capsys, gz_predict, out=str(tmp_path / "out"), catalog=str(survey / "catalog.csv"), weights=str(later))
    assert "format" in said and "99" in said


def test_what_a_command_is_not_told(survey, tmp_path, capsys):
    assert "--catalog" in fails(capsys, gz_predict, out=str(tmp_path / "p"))
    assert "parquet" in fails(capsys, gz_predict, out=str(tmp_path / "p"), catalog=str(survey / "catalog.csv"), table="parqet")
    assert "tensorboard" in fails(capsys, gz_train, out=str(tmp_path / "p"), log="tensorbord")
    table = pd.read_csv(survey / "catalog.csv", dtype=dict(id_str=str)).drop(columns="file_loc")
    table.to_csv(tmp_path / "bare.csv", index=False)
    assert "file_loc" in fails(capsys, gz_predict, out=str(tmp_path / "p"), catalog=str(tmp_path / "bare.csv"), root=str(tmp_path))


@pytest.fixture(scope="module")
def vectors(survey, tmp_path_factory):
    "Representations of the hundred galaxies, in float32 on every machine, as a picture that is asked about is"
    out = tmp_path_factory.mktemp("vectors") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gz_nbdev.represent._guess", lambda device, size: Plan())
        gz_represent(out=str(out), catalog=str(survey / "catalog.csv"))
    return out


@pytest.fixture(scope="module")
def marks(survey, tmp_path_factory):
    "Labels of sixty of them: whether they look flat, and how flat"
    truth = pd.read_parquet(survey / "truth.parquet")
    table = truth.assign(flat=(truth.axis_ratio < truth.axis_ratio.median()).astype(int))[["id_str", "flat", "axis_ratio"]].head(60)
    table.to_csv(path := tmp_path_factory.mktemp("marks") / "marks.csv", index=False)
    return path


def everything(folder):
    "Every file below a folder, with its bytes"
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def test_from_pictures_to_neighbours_and_finds_in_processes_of_their_own(survey, marks, tmp_path):
    "The three commands one after another, as from a shell; nothing outside --out is touched"
    before, out = everything(survey), tmp_path / "results"
    catalog = ["--catalog", str(survey / "catalog.csv")]
    words = dict(gz_represent=[*catalog, "--out", str(out / "vectors")],
                 gz_search=[*catalog, "--table", str(out / "vectors"), "--ra", "0", "--dec", "0", "--radius", "1e9", "--k", "4", "--out", str(out / "search")],
                 gz_finetune=[*catalog, "--table", str(out / "vectors"), "--labels", str(marks), "--label", "flat", "--prevalence", ".4",
                              "--form", "csv", "--out", str(out / "flat")])
    script = tmp_path / "command.py"
    calls = "".join(f"sys.argv[1:] = {arguments!r}\n{command}()\n" for command, arguments in words.items())
    script.write_text(f"import sys\nfrom gz_nbdev.cli import {', '.join(words)}\n{calls}")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=os.environ | dict(OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "100 written + 0 quarantined" in done.stdout and "ROC AUC" in done.stdout and "if perfect" in done.stdout
    assert len(pd.read_parquet(out / "search" / "neighbours.parquet")) == 4 and (out / "search" / "neighbours.jpg").stat().st_size > 1000
    found = pd.read_csv(out / "flat" / "found.csv", dtype=dict(id_str=str))
    assert len(found) == 100 and found.probability.is_monotonic_decreasing and found.label.notna().sum() == 60
    assert load_finder(out / "flat" / "finder").prevalence == .4 and (out / "flat" / "found.jpg").exists()
    assert everything(survey) == before and {p.name for p in tmp_path.iterdir()} == {"results", "command.py"}


def test_a_search_by_each_way_to_ask(survey, vectors, tmp_path):
    table, catalog = dict(table=str(vectors), k=3), str(survey / "catalog.csv")
    ids, places = Store(vectors).read_features()[0], read_catalog(catalog).set_index("id_str")
    def found(name, **asked):
        gz_search(out=str(tmp_path / name), **table, **asked)
        return pd.read_parquet(tmp_path / name / "neighbours.parquet")
    by_id = found("id", id=f"{ids[0]},{ids[1]}")
    assert list(by_id["query"].unique()) == ids[:2] and len(by_id) == 6 and not (tmp_path / "id" / "neighbours.jpg").exists()
    by_picture = found("picture", picture=str(survey / places.file_loc[ids[0]]), catalog=catalog)
    assert list(by_picture.id_str) == list(by_id.id_str[:3]) and (tmp_path / "picture" / "neighbours.jpg").exists()
    there = found("position", ra=float(places.ra[ids[0]]), dec=float(places.dec[ids[0]]), catalog=catalog)
    assert list(there.id_str) == list(by_id.id_str[:3])
    several = found("like", like=",".join(ids[:3]), unlike=ids[5])
    assert len(several) == 3 and not set(several.id_str) & {*ids[:3], ids[5]}


SEARCHES = {
    "an empty query": ({}, ["--id", "--like"]),
    "two questions at once": (dict(id="a", like="b"), ["one way", "--id and --like"]),
    "an unknown id": (dict(id="SIM000003-9999999"), ["no galaxy", "SIM000003-00000"]),
    "half a position": (dict(ra=3.), ["--ra and --dec"]),
    "a position without positions": (dict(ra=3., dec=2.), ["ra and dec"]),
    "unlike nothing": (dict(unlike="a"), ["ask in one way"]),
    "unlike without like": (dict(id="a", unlike="b"), ["--unlike goes with --like"]),
    "no such picture": (dict(picture="none.jpg"), ["none.jpg"]),
    "too many": (dict(id="SIM000003-0000000", k=1000), ["100 galaxies"]),
    "a form that nobody writes": (dict(id="a", form="cvs"), ["csv"]),
    "a metric that nobody knows": (dict(id="a", metric="cosin"), ["cosine"]),
    "no table": (dict(id="a", table=""), ["--table"]),
    "a table that is not there": (dict(id="a", table="nowhere"), ["nowhere"]),
}


@pytest.mark.parametrize("asked, said", SEARCHES.values(), ids=SEARCHES)
def test_bad_questions(vectors, tmp_path, capsys, asked, said):
    message = fails(capsys, gz_search, **dict(out=str(tmp_path / "out"), table=str(vectors)) | asked)
    assert all(part in message for part in said), message
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_and_an_index_of_another_table(vectors, trained, survey, tmp_path, capsys):
    "What was found before stays as it was"
    first, out = Store(vectors).read_features()[0][0], tmp_path / "out"
    gz_search(out=str(out), table=str(vectors), id=first, k=3, engine="approximate")
    before = everything(out)
    other = tmp_path / "other"
    gz_represent(out=str(other), catalog=str(survey / "catalog.csv"), weights=str(trained / "weights"))
    said = fails(capsys, gz_search, out=str(out), table=str(other), id=first, k=3, engine="approximate")
    assert "holds the index of store, not of other" in said and everything(out) == before
    picture = str(survey / "images" / "0000" / f"{first}.jpg")
    said = fails(capsys, gz_search, out=str(out), table=str(other), picture=picture, k=3)
    assert "weights" in said and everything(out) == before
    said = fails(capsys, gz_represent, out=str(other), catalog=str(survey / "catalog.csv"))
    assert "another folder" in said
    shutil.copytree(vectors, tmp_path / "torn")
    shard = next((tmp_path / "torn" / "shards").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-100])
    for command, asked in ((gz_search, dict(id=first)), (gz_finetune, dict(labels=str(survey / "catalog.csv"), label="ra", numbers=True))):
        said = fails(capsys, command, out=str(out), table=str(tmp_path / "torn"), **asked)
        assert "not what was written" in said and everything(out) == before


LABELS = {
    "no such column": (dict(label="flatt"), None, ["no column 'flatt'", "flat"]),
    "text for a class": ({}, dict(flat="maybe"), ["0 or 1", "maybe"]),
    "text for a number": (dict(numbers=True), dict(flat="large"), ["must be a number", "large"]),
    "one class only": ({}, dict(flat=1), ["at least three of each kind"]),
    "a background of less than nothing": (dict(background=-3), {}, ["--background -3", "0 or more"]),
    "a list of less than nothing": (dict(top=-5), {}, ["--top -5", "0 or more"]),
    "no labels at all": ({}, dict(flat=None), ["blank"]),
    "galaxies that are not there": ({}, dict(id_str=[f"J{i}" for i in range(60)]), ["60 of 60", "no representation"]),
    "contradictory": ({}, "twice", ["contradictory"]),
    "counts taken for fractions": (dict(label="votes", above=.25, below=.05), dict(votes=[7] * 60), ["holds 7", "_fraction"]),
    "cuts that cannot be read": (dict(label="votes", above=.25, cuts="a=3"), dict(votes=.5), ["column>least"]),
    "cuts without votes": (dict(cuts="a>.3"), None, ["--above"]),
    "a share above one": (dict(prevalence=3.), None, ["between 0 and 1"]),
    "pictures for tuning": (dict(tune=True), None, ["--catalog"]),
    "a background for tuning": (dict(tune=True, background=9), None, ["--background is for a class, without --tune"]),
}


@pytest.mark.parametrize("asked, change, said", LABELS.values(), ids=LABELS)
def test_bad_labels(vectors, marks, tmp_path, capsys, asked, change, said):
    table = pd.read_csv(marks, dtype=dict(id_str=str))
    if change == "twice": table = pd.concat([table, table.head(1).assign(flat=1 - table.flat[0])])
    elif change: table = table.assign(**change)
    table.to_csv(tmp_path / "labels.csv", index=False)
    message = fails(capsys, gz_finetune, **dict(out=str(tmp_path / "out"), table=str(vectors), labels=str(tmp_path / "labels.csv"), label="flat") | asked)
    assert all(part in message for part in said), message
    assert not (tmp_path / "out").exists()


def test_votes_numbers_and_a_tuned_network(survey, vectors, marks, tmp_path, capsys):
    common = dict(table=str(vectors), catalog=str(survey / "catalog.csv"))
    gz_finetune(out=str(tmp_path / "votes"), **common, label="smooth-or-featured-dr5_featured-or-disk", above=.5, below=.3, background=30, top=20)
    assert "left out" in capsys.readouterr().out and len(pd.read_parquet(tmp_path / "votes" / "found.parquet")) == 20
    gz_finetune(out=str(tmp_path / "plain"), **common, label="smooth-or-featured-dr5_featured-or-disk", above=.5, below=.3, top=20)
    gz_finetune(out=str(tmp_path / "numbers"), table=str(vectors), labels=str(marks), label="axis_ratio", numbers=True)
    assert "R2" in capsys.readouterr().out
    found = pd.read_parquet(tmp_path / "numbers" / "found.parquet")
    assert (found.lower90 < found.value).all() and (found.value < found.upper90).all()
    gz_finetune(out=str(tmp_path / "tuned"), **common, labels=str(marks), label="flat", tune=True, epochs=3, top=5)
    finder, weights = load_finder(tmp_path / "tuned" / "finder"), load_weights(tmp_path / "tuned" / "weights")
    assert finder.encoder["weights"] == weights.hash and weights.view == load_weights("gz-sim-small").view
    figures = {name: json.loads((tmp_path / name / "finder" / "finder.json").read_text())["metrics"] for name in ("votes", "plain", "tuned")}
    assert figures["tuned"] == weights.info["metrics"] and figures["votes"] != figures["plain"]   # each of its own model


def test_labels_beside_the_fractions_of_a_network(vectors, marks, tmp_path, capsys):
    "Every label teaches, whatever the network thought of the galaxy; labels made of votes are said to be partly blank"
    table = pd.read_csv(marks, dtype=dict(id_str=str))
    names = ["smooth-or-featured_featured-or-disk_fraction", "disk-edge-on_no_fraction", "rare-features_ring_fraction"]
    table = table.assign(ring=table.flat, **{name: np.where(table.flat == 1, .9, .1) for name in names[:2]})
    table.to_csv(tmp_path / "mine.csv", index=False)
    gz_finetune(out=str(tmp_path / "mine"), table=str(vectors), labels=str(tmp_path / "mine.csv"), label="ring")
    assert f"{len(table)} labels, {table.flat.sum()} of the class" in capsys.readouterr().out
    votes = table.drop(columns="ring").assign(**{names[0]: .9, names[1]: .9, names[2]: np.where(table.flat == 1, .9, .01)})
    votes.loc[:3, names[2]] = .1
    votes.to_csv(tmp_path / "votes.csv", index=False)
    gz_finetune(out=str(tmp_path / "votes"), table=str(vectors), labels=str(tmp_path / "votes.csv"), label="ring")
    said = capsys.readouterr().out
    assert f"no label: 'ring' is blank for 4 of {len(table)} galaxies" in said and f"{len(table) - 4} labels, " in said


@pytest.fixture(scope="module")
def gan(survey, tmp_path_factory):
    "A tiny GAN of the hundred galaxies"
    out = tmp_path_factory.mktemp("gan")
    gz_anomaly("train", out=str(out), catalog=str(survey / "catalog.csv"), size=32, width=.125, iterations=2)
    return out


def test_a_gan_is_trained_and_scores_a_survey(gan, survey, tmp_path, capsys):
    assert {"weights", "history.csv", "samples.jpg"} <= {p.name for p in gan.iterdir()}
    asked = dict(weights=str(gan / "weights"), catalog=str(survey / "catalog.csv"), out=str(tmp_path / "out"), form="csv")
    gz_anomaly("score", **asked)
    said = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "scores.csv", dtype=dict(id_str=str))
    assert "100 written + 0 quarantined = 100 galaxies" in said and table.id_str[0] in said
    assert table.feature_z.is_monotonic_decreasing and set(table.id_str) == set(read_catalog(survey / "catalog.csv").id_str)
    published = pd.read_csv(tmp_path / "out" / "published" / "anomaly_scores.csv", dtype=dict(filename=str))
    assert len(published) == 100 == len(np.load(tmp_path / "out" / "published" / "latents.npy"))
    assert (tmp_path / "out" / "strangest.jpg").stat().st_size > 5000
    before = (tmp_path / "out" / "store" / "manifest.jsonl").read_bytes()
    gz_anomaly("score", **asked)   # again: nothing is scored anew
    assert (tmp_path / "out" / "store" / "manifest.jsonl").read_bytes() == before


def test_representations_are_scored_without_pictures(survey, tmp_path):
    gz_represent(out=str(tmp_path / "vectors"), catalog=str(survey / "catalog.csv"), turns=1)
    gz_anomaly("score", table=str(tmp_path / "vectors"), out=str(tmp_path / "out"))
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert len(table) == 100 and table.anomaly_score.is_monotonic_decreasing
    assert not (tmp_path / "out" / "strangest.jpg").exists()


def test_anomalies_that_cannot_be_had(gan, survey, tmp_path, capsys):
    def says(task, **kwargs): return fails(capsys, gz_anomaly, task=task, **{"out": str(tmp_path / "out"), **kwargs})
    catalog = str(survey / "catalog.csv")
    assert "did you mean 'score'" in says("scor", catalog=catalog)
    assert "--catalog" in says("score") and "--catalog" in says("train")
    assert "did you mean 'gz-sim-gan'" in says("score", catalog=catalog, weights="gz-sim-gann")
    assert "an encoder, not a GAN" in says("score", catalog=catalog, weights="gz-sim-small")
    assert "multiple of 16" in says("train", catalog=catalog, size=50)
    assert "a number of steps" in says("score", catalog=catalog, weights=str(gan / "weights"), refine=-3)
    assert "leave out --weights" in says("score", table=catalog, feature_weight=.7)
    assert "0 or more" in says("score", table=catalog, seed=-1)
    assert "between 0 and 1" in says("score", catalog=catalog, weights=str(gan / "weights"), feature_weight=2)
    (tmp_path / "empty").mkdir()
    assert "no picture under" in says("score", catalog=str(tmp_path / "empty"))
    assert "no column file_loc" not in says("score", catalog=changed(survey, tmp_path, file_loc=None))
    assert "holds another training" in fails(capsys, gz_anomaly, task="train", out=str(gan), catalog=catalog, size=48, width=.125)


def test_a_picture_table_is_a_catalog(survey, tmp_path, capsys):
    "Parquet with the pictures in it, as bytes or as the hub stores them"
    table = pd.read_csv(survey / "catalog.csv", dtype={"id_str": str}).head(12)
    data = [(survey / name).read_bytes() for name in table.file_loc]
    for name, image in dict(plain=data, hub=[dict(bytes=d, path=None) for d in data]).items():
        file = tmp_path / f"{name}.parquet"
        table.drop(columns="file_loc").assign(image=image).to_parquet(file, index=False)
        gz_represent(out=str(tmp_path / name), catalog=str(file), turns=1)
        assert "12 written + 0 quarantined = 12 galaxies" in capsys.readouterr().out
    gz_anomaly("score", table=str(tmp_path / "plain"), catalog=str(tmp_path / "plain.parquet"), out=str(tmp_path / "out"))
    assert (tmp_path / "out" / "strangest.jpg").exists()


def test_a_sheet_is_no_larger_than_a_jpeg(survey, vectors, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_SHOWN", 5)
    first = pd.read_csv(survey / "catalog.csv", dtype=dict(id_str=str)).id_str[0]
    gz_search(out=str(tmp_path), table=str(vectors), catalog=str(survey / "catalog.csv"), id=first, k=60)
    assert "the sheet shows 5 queries and 5 neighbours at most" in capsys.readouterr().out
    assert len(pd.read_parquet(tmp_path / "neighbours.parquet")) == 60 and (tmp_path / "neighbours.jpg").exists()
    shown = cli._shown_of(pd.DataFrame(dict(query=[f"q{i // 9}" for i in range(63)], rank=[i % 9 + 1 for i in range(63)])))
    assert shown["query"].nunique() == 5 and shown["rank"].max() == 5


def test_published_columns_that_would_be_two_are_refused_before_the_work(survey, tmp_path, capsys):
    desi = get_schema("gz_desi")
    weights = save_weights(GalaxyModel(create_encoder("test_resnet"), len(desi.columns)), tmp_path / "w", View(32), desi)
    message = fails(capsys, gz_predict, out=str(tmp_path / "out"), catalog=str(survey / "catalog.csv"), weights=str(weights), published=True)
    assert "give the schema of one campaign" in message and not (tmp_path / "out").exists()
