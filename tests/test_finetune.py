"Few labels: what is learned is what scikit-learn would learn, is calibrated, survives the disk, and refuses what it cannot use"
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from gz_nbdev import finetune
from gz_nbdev.catalog import read_ring_catalog
from gz_nbdev.data import ArrayImages, View, load_pixels
from gz_nbdev.finetune import (RING_CUTS, _reduction, class_figures, cross_validate, find, find_sheet, fit_class, fit_column,
                               labels_from_votes, learning_curve, load_finder, match_labels, perfect_calibration, pick_labels,
                               save_finder, tune_class, tuned_arm, vote_fraction)
from gz_nbdev.metrics import calibration_error
from gz_nbdev.models import save_weights
from gz_nbdev.schema import InputError, get_schema
from gz_nbdev.store import Store


@pytest.fixture(scope="module")
def sky():
    "Three thousand invented galaxies, one in ten of the class, in thirty numbers"
    rng = np.random.default_rng(7)
    ring = rng.uniform(size=3000) < .1
    return 3 + 5 * (rng.normal(size=(3000, 30)) + 1.4 * (np.arange(30) < 6) * ring[:, None]), ring


@pytest.fixture(scope="module")
def finder(sky):
    x, ring = sky
    rows = pick_labels(ring[:1500], 40, 40)
    return fit_class(x[rows], ring[rows], .1, encoder=dict(weights="aa", turns=4, view=dict(size=64)), name="ring")


def test_thresholds_are_those_of_the_ring_catalogue():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.uniform(size=(500, 3)), columns=["rare-features_ring_fraction", *RING_CUTS])
    table["rare-features_ring_fraction"] *= .4
    table = table.assign(iauname=[f"J{i}" for i in range(500)]).assign(id_str=lambda t: t.iauname)
    ours, theirs = labels_from_votes(table, "rare-features_ring_fraction", cuts=RING_CUTS, label="ring"), read_ring_catalog(table)
    assert ours.set_index("id_str").ring.to_dict() == theirs.set_index("id_str").ring.to_dict() and 20 < len(ours) < 480


def test_counts_become_fractions_of_those_asked():
    votes = pd.DataFrame({"bar-dr5_strong": [12, 2, 0], "bar-dr5_weak": [18, 1, 3], "bar-dr5_no": [10, 0, 37]})
    np.testing.assert_allclose(vote_fraction(votes, "bar-dr5_strong", "dr5"), [.3, np.nan, 0])
    np.testing.assert_allclose(vote_fraction(votes, "bar-dr5_strong", "dr5", min_asked=3)[1], 2 / 3)


def test_the_stored_numbers_are_the_pipeline(sky):
    "One weight a feature and an offset say the same as standardising, turning and weighing"
    x, _ = sky
    values = x[:300, 0] - 2 * x[:300, 3] + np.random.default_rng(1).normal(size=300)
    pipeline = make_pipeline(*(step for _, step in _reduction(x[:300], 0).steps), RidgeCV(np.logspace(-1, 5, 13))).fit(x[:300], values)
    np.testing.assert_allclose(fit_column(x[:300], values).predict(x), pipeline.predict(x), rtol=1e-8)


def test_bayes_rule(finder, sky):
    "Another prevalence multiplies the odds, and leaves the order alone"
    x, _ = sky
    p, q = finder.probability(x), replace(finder, prevalence=.5).probability(x)
    np.testing.assert_allclose(q / (1 - q), 9 * p / (1 - p), rtol=1e-6)
    assert (np.argsort(p, kind="stable") == np.argsort(q, kind="stable")).all()


def test_probabilities_keep_what_they_promise(finder, sky):
    x, ring = sky[0][1500:], sky[1][1500:]
    p = finder.probability(x)
    assert roc_auc_score(ring, p) > .9 and abs(p.sum() / ring.sum() - 1) < .35
    assert calibration_error(ring, p) < perfect_calibration(p)[2] + .03


def test_a_perfect_model_has_the_error_that_is_foreseen():
    rng, seen = np.random.default_rng(0), []
    p = rng.uniform(size=289)
    mean, low, high = perfect_calibration(p, draws=1000)
    seen = [calibration_error(rng.uniform(size=289) < p, p) for _ in range(300)]
    assert abs(np.mean(seen) - mean) < .003 and .84 < np.mean((low <= np.array(seen)) & (np.array(seen) <= high)) < .96


def test_shuffled_labels_are_not_found(sky):
    labels = np.random.default_rng(0).permutation(np.arange(200) % 2)
    table = class_figures(labels, cross_validate(sky[0][:200], labels, repeats=2))
    assert table.lower90["ROC AUC"] < .5 < table.upper90["ROC AUC"] + .1 and table.reference["ROC AUC"] == .5


def test_a_background_costs_no_label_and_finds_more(sky):
    x, ring = sky
    scores = {}
    for size in (0, 600):
        aucs = []
        for seed in range(3):
            rows = pick_labels(ring[:1500], 15, 15, seed)
            blind = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(1500), rows))[:size]
            made = fit_class(x[rows], ring[rows], .1, seed, background=x[blind])
            assert made.labels == 30 and made.prevalence == .1
            aucs.append(roc_auc_score(ring[1500:], made.probability(x[1500:])))
        scores[size] = np.mean(aucs)
    assert scores[600] > scores[0]


def test_saved_and_loaded_it_says_the_same(finder, sky, tmp_path):
    again = load_finder(save_finder(finder, tmp_path / "a", dict(auc=.9)))
    np.testing.assert_array_equal(again.probability(sky[0]), finder.probability(sky[0]))
    assert (again.encoder, again.name, again.labels) == (finder.encoder, "ring", 80)
    assert not any(p.suffix in (".pkl", ".pt") for p in tmp_path.rglob("*"))


@pytest.mark.parametrize("damage, said", [
    (lambda f: (f / "finder.safetensors").write_bytes((f / "finder.safetensors").read_bytes()[:-8]), "not the file"),
    (lambda f: (f / "finder.safetensors").unlink(), "missing"), (lambda f: (f / "finder.json").unlink(), "no finder.json"),
    (lambda f: (f / "finder.json").write_text('{"format": 1'), "damaged"), (lambda f: (f / "finder.json").write_text("[]"), "damaged"),
    (lambda f: (f / "finder.json").write_text(json.dumps(dict(format=9))), "later"),
    (lambda f: (f / "finder.json").write_text(json.dumps(json.loads((f / "finder.json").read_text()) | dict(prevalence=2))), "between 0 and 1"),
])
def test_a_damaged_folder(finder, tmp_path, damage, said):
    damage(save_finder(finder, tmp_path / "a"))
    with pytest.raises(InputError, match=said): load_finder(tmp_path / "a")


def written(folder, ids, x, **meta):
    "A store of representations"
    with Store(folder, dict(kind="representations") | meta) as store:
        store.write_shard(pd.DataFrame(dict(id_str=ids)), x.astype(np.float32))
        store.finish(ids)
    return store


def test_a_survey_is_ranked_for_the_encoder_it_belongs_to(finder, sky, tmp_path):
    x, ids = sky[0][:400], [f"g{i}" for i in range(400)]
    mine = dict(weights="aa", turns=4, view=dict(size=64))
    found = find(finder, written(tmp_path / "mine", ids, x, **mine))
    assert sorted(found.id_str) == sorted(ids) and found.probability.is_monotonic_decreasing
    np.testing.assert_allclose(found.expected_purity[9], found.probability[:10].mean())
    np.testing.assert_allclose(found.expected_completeness.iloc[-1], 1)
    assert find(finder, tmp_path / "mine", top=5).id_str.tolist() == found.id_str[:5].tolist()
    for i, (key, value) in enumerate(dict(weights="bb", turns=1, view=dict(size=96)).items()):
        with pytest.raises(InputError, match=f"made with {key}"): find(finder, written(tmp_path / f"{i}", ids, x, **mine | {key: value}))
    with pytest.raises(InputError, match="nobody knows what"): find(finder, written(tmp_path / "unknown", ids, x))
    with pytest.raises(InputError, match="same encoder"): find(finder, (ids, x[:, :8]))


def test_labels_meet_representations_by_id():
    ids, table = ["c", "b", "a"], pd.DataFrame(dict(id_str=["a", "b", "c", "a"], ring=["1", "", "0", "1"]))
    rows, values = match_labels(ids, table, "ring")
    assert rows.tolist() == [0, 2] and values.tolist() == [0, 1]
    for change, said in ((dict(ring=["1", "0", "0", "0"]), "contradictory"), (dict(ring="perhaps"), "perhaps"), (dict(ring=None), "blank"),
                         (dict(id_str=["a", "b", "zz", "a"]), "'zz'")):
        with pytest.raises(InputError, match=said): match_labels(ids, table.assign(**change), "ring")
    with pytest.raises(InputError, match="text"): match_labels(ids, pd.DataFrame(dict(id_str=[1., 2.], ring=[0, 1])), "ring")


def test_bad_input_is_said(sky):
    x, ring = sky
    for call, said in ((lambda: fit_class(x[:20], np.ones(20)), "at least two of each"), (lambda: fit_class(x[:20], ring[:19]), "19 labels for 20"),
                       (lambda: fit_class(np.where(x[:20] > 9, np.nan, x[:20]), np.arange(20) % 2), "not finite"),
                       (lambda: fit_column(x[:20], ["large"] * 20, name="radius"), "column 'radius' must be a number"),
                       (lambda: fit_column(x[:20], np.ones(20)), "not all the same"),
                       (lambda: learning_curve(dict(a=x), ring, sizes=(3000,)), "None"),
                       (lambda: cross_validate(x[:20], np.arange(20) < 3), "cannot be dealt"),
                       (lambda: find_sheet(pd.DataFrame(dict(id_str=["b"])), ArrayImages(["a"], torch.zeros(1, 3, 8, 8, dtype=torch.uint8))), "same ids")):
        with pytest.raises(InputError, match=said): call()


def test_the_curve_is_repeatable_and_has_its_columns(sky):
    x, ring = sky
    curve = learning_curve(dict(all=x, half=x[:, 15:]), ring, sizes=(10, 60), repeats=3)
    pd.testing.assert_frame_equal(curve, learning_curve(dict(all=x, half=x[:, 15:]), ring, sizes=(10, 60), repeats=3))
    assert list(curve.labels) == [10, 60, 10, 60] and (curve.repeats == 3).all()
    table = curve.set_index(["arm", "labels"])
    assert table.roc_auc["all", 60] > table.roc_auc["half", 60] and abs(table.roc_auc["half", 60] - .5) < .15
    assert (curve.roc_auc_lower90 <= curve.roc_auc).all() and (curve.roc_auc <= curve.roc_auc_upper90).all()


@pytest.mark.parametrize("labels,folds,needed", [([1, 1] + [0] * 13, 2, 4), ([1] * 3 + [0] * 12, 2, 4), ([1] * 4 + [0] * 9, 5, 5),
                                                 ([0, 0] + [1] * 13, 2, 4)])
def test_too_few_for_the_folds(sky, labels, folds, needed):
    "The message counts all labels, not those of one fold"
    said = f"{sum(labels)} of {len(labels)} labels are of the class.*at least {needed} of each kind are needed"
    with pytest.raises(InputError, match=said): cross_validate(sky[0][:len(labels)], labels, folds)


@pytest.mark.parametrize("count,folds", [(4, 2), (3, 3), (5, 5)])
def test_just_enough_for_the_folds(sky, count, folds):
    labels = np.arange(20) < count
    assert np.isfinite(cross_validate(sky[0][:20], labels, folds)).all()


def test_settings_that_cannot_be(sky, finder, tmp_path):
    x, ring = sky
    for top in (0, -5):
        with pytest.raises(InputError, match=f"top={top}: keep at least 1"): find(finder, (range(len(x)), x), top)
    for call in (lambda: fit_class(x[:200], ring[:200], seed=-1), lambda: fit_column(x[:200], x[:200, 0], seed=-1),
                 lambda: cross_validate(x[:200], ring[:200], seed=-1), lambda: pick_labels(ring, 5, 5, seed=-1),
                 lambda: learning_curve({"all": x}, ring, (10,), seed=-1),
                 lambda: tune_class(pd.DataFrame(dict(id_str=["a"], label=[1])), None, tmp_path, seed=-1)):
        with pytest.raises(InputError, match="seed=-1: a whole number from 0"): call()
    with pytest.raises(InputError, match="epochs=0: at least 1"):
        tune_class(pd.DataFrame(dict(id_str=["a"], label=[1])), None, tmp_path, epochs=0)


def test_representations_with_an_id_twice(sky, finder, tmp_path):
    marks = pd.DataFrame(dict(id_str=["a", "b"], ring=[1, 0]))
    with pytest.raises(InputError, match="representations have 'a' more than once"): match_labels(["a", "b", "a"], marks, "ring")
    table = pd.DataFrame(dict(id_str=["a", "b", "a"])).assign(**{f"feat_{i}": sky[0][:3, i] for i in range(30)})
    table.to_parquet(tmp_path / "twice.parquet")
    with pytest.raises(InputError, match=r"1 ids come twice \(a\)"): find(replace(finder, encoder={}), tmp_path / "twice.parquet")


def test_who_validates_is_checked_before_the_work(tmp_path):
    "A source that cannot even be read is never asked"
    table = pd.DataFrame(dict(id_str=["a", "b"], label=[1, 0], is_valid=["yes", "no"]))
    with pytest.raises(InputError, match="Column 'is_valid' has 'yes' in row 0"): tune_class(table, None, tmp_path, progress=False)


# Tuning keeps what is somebody's

def discs(n=40) -> tuple:
    "Discs that differ in brightness, of two classes; as a catalog and a cache"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] - 15.5
    label = np.arange(n) % 2
    pixels = np.exp(-(x**2 + y**2) / 60) * (80 + 100 * label)[:, None, None] + rng.uniform(0, 20, (n, 32, 32))
    images = torch.tensor(pixels.astype(np.uint8))[:, None].repeat(1, 3, 1, 1)
    catalog = pd.DataFrame(dict(id_str=[f"g{i}" for i in range(n)], label=label))
    return catalog, load_pixels(ArrayImages(catalog.id_str, images), View(32), progress=False)


SHORT = dict(weights="test_resnet", epochs=1, device="cpu")


@pytest.fixture
def untaught(monkeypatch):
    "Whether training began: it must not"
    def refused(*args, **kwargs): raise AssertionError("training began")
    monkeypatch.setattr(finetune, "_tune", refused)


def test_tuning_replaces_what_was_tuned_and_nothing_else(tmp_path, request):
    catalog, cache = discs()
    for seed in (0, 1): tuned = tune_class(catalog, cache, tmp_path, seed=seed, progress=False, view=View(32), **SHORT)
    assert tuned.info["metrics"]["prevalence"] == .5
    save_weights(tuned.model, tmp_path / "votes" / "weights", View(32), get_schema("rings"))
    (tmp_path / "theirs" / "weights").mkdir(parents=True)
    (tmp_path / "theirs" / "weights" / "notes.txt").write_text("mine")
    request.getfixturevalue("untaught")
    for name, message in (("votes", "holds a network that tells no class"), ("theirs", "holds notes.txt")):
        before = {file: file.read_bytes() for file in (tmp_path / name).rglob("*") if file.is_file()}
        with pytest.raises(InputError, match=message): tune_class(catalog, cache, tmp_path / name, progress=False, view=View(32), **SHORT)
        assert {file: file.read_bytes() for file in (tmp_path / name).rglob("*") if file.is_file()} == before


def test_the_prevalence_is_that_of_all_labels(tmp_path):
    catalog, cache = discs()
    catalog = catalog.assign(is_valid=(np.arange(40) < 9) | (catalog.label == 1) & (np.arange(40) < 20))   # few of the class teach
    assert tune_class(catalog, cache, tmp_path, progress=False, view=View(32), **SHORT).info["metrics"]["prevalence"] == .5


def test_both_kinds_must_validate(tmp_path, untaught):
    catalog, cache = discs()
    with pytest.raises(InputError, match="0 of the 10 galaxies that validate are of the class: both kinds"):
        tune_class(catalog.assign(split=np.where(np.arange(40) % 4 == 0, "valid", "train")), cache, tmp_path, progress=False, view=View(32), **SHORT)


def test_no_galaxy_is_judged_by_the_picture_of_another():
    catalog, cache = discs()
    part = load_pixels(ArrayImages(cache.ids[1:], cache.pixels[1:].clone()), View(32), progress=False)
    arm = tuned_arm(catalog, part, "label", **SHORT)
    with pytest.raises(InputError, match="1 galaxies have no usable picture, the first 'g0'"): arm(np.arange(2, 40), np.array([1, 0]), 0)


def test_a_size_counts_once(sky):
    x, ring = sky
    rows = pick_labels(ring, 30, 30)
    curve = learning_curve(dict(ours=x[rows]), ring[rows], sizes=(10, 11, 42, None), repeats=3)
    assert curve.labels.tolist() == [10, 42] and set(curve.repeats) == {3}


@pytest.mark.parametrize("column, change, message", [
    ("bar-dr5_no", [-9, 9], "bar-dr5_no of 'a' is -9.0: votes are whole numbers"),
    ("bar-dr5_no", ["many", "9"], "'bar-dr5_no' holds .*, not numbers of votes"), ("bar-dr5_no", None, "no column 'bar-dr5_no'")])
def test_labels_are_made_of_votes_alone(column, change, message):
    table = pd.DataFrame({"id_str": ["a", "b"], "bar-dr5_strong": [15, 1], "bar-dr5_weak": [16, 2], "bar-dr5_no": [9, 9]})
    table = table.drop(columns=column) if change is None else table.assign(**{column: change})
    with pytest.raises(InputError, match=message): labels_from_votes(table, "bar-dr5_weak", above=.5, below=.3, schema="dr5")
