"Scorers that survive a file, a fusion that refuses what it cannot rank, and labels that are never lost"
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save as save_tensors
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import LocalOutlierFactor

import gz_nbdev.anomaly as anomaly
from gz_nbdev.anomaly import (SCORERS, STRATEGIES, ActiveSearch, ForestScorer, NeighbourScorer, ResidualScorer,
                              anomaly_report, load_scorer, robust_z, score_anomalies, simulate_search,
                              simulated_person, why_odd)
from gz_nbdev.metrics import rank_weighted_score
from gz_nbdev.schema import InputError

RNG = np.random.default_rng(0)
N, D = 400, 12
FEATURES = RNG.normal(size=(N, 5)) @ RNG.normal(size=(5, D)) + .3 * RNG.normal(size=(N, D))
ODD = np.arange(N) >= N - 20
FEATURES[ODD] += 4 * RNG.normal(size=D) / np.sqrt(D) * np.sqrt(D)
IDS = [f"J{i:03d}" for i in range(N)]
each_kind = pytest.mark.parametrize("kind", SCORERS)
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


# Scorers

@each_kind
def test_scores_are_identical_after_a_file(tmp_path, kind):
    scorer = SCORERS[kind](components=6, seed=7).fit(FEATURES[:200])
    again = load_scorer(scorer.save(tmp_path / "kept.safetensors"))
    assert type(again) is type(scorer) and (again.components, again.seed) == (6, 7)
    assert (again.score(FEATURES) == scorer.score(FEATURES)).all()


@each_kind
def test_a_score_is_of_the_galaxy_alone(kind):
    "Not of the order, nor of who else is scored"
    scorer, order = SCORERS[kind]().fit(FEATURES[:300]), RNG.permutation(N)
    whole = scorer.score(FEATURES)
    assert np.allclose(scorer.score(FEATURES[order]), whole[order], rtol=1e-9)
    parts = np.concatenate([scorer.score(part) for part in np.array_split(FEATURES, [1, 8, 250])])
    assert np.allclose(parts, whole, rtol=1e-9)


@each_kind
def test_planted_are_stranger(kind):
    assert anomaly_report(pd.DataFrame({kind: SCORERS[kind]().fit(FEATURES[~ODD]).score(FEATURES)}), ODD).roc_auc[kind] > .9


@each_kind
@pytest.mark.parametrize("size", [1., 1e-6, 1e6])
def test_units_do_not_matter(kind, size):
    scaled = SCORERS[kind]().fit(size * FEATURES[:300]).score(size * FEATURES)
    assert np.allclose(scaled, SCORERS[kind]().fit(FEATURES[:300]).score(FEATURES), rtol=1e-4)


def test_local_outlier_factor_is_the_published():
    x = FEATURES[:100]
    ours = SCORERS["lof"](components=D).fit(x[:80]).score(x[80:])
    z = (x - x[:80].mean(0)) / x[:80].std(0)   # a rotation by principal components keeps distances
    theirs = -LocalOutlierFactor(n_neighbors=50, novelty=True).fit(z[:80]).score_samples(z[80:])
    assert np.allclose(ours, theirs)


def test_mahalanobis_is_the_shrunk_one():
    x = FEATURES[:100]
    z = (x - x.mean(0)) / x.std(0)
    assert np.allclose(SCORERS["mahalanobis"](components=D).fit(x).score(x)**2, LedoitWolf().fit(z).mahalanobis(z))


def test_residual_is_what_the_plane_leaves_over():
    flat = FEATURES[:, [0, 1, 0, 1]]
    scorer = ResidualScorer().fit(flat)
    assert (scorer.score(flat) == 0).all()
    assert scorer.score(flat[:1] + [[0, 0, 1., 0]])[0] > .1


def test_a_galaxy_is_not_its_own_neighbour():
    scorer = NeighbourScorer().fit(FEATURES)
    assert scorer.score(FEATURES).min() > 0


def broken(data: bytes) -> dict:
    "Files that are no scorer, by what the error must say"
    arrays = {"mean": np.zeros(3)}
    def noted(**note): return save_tensors(arrays, {"scorer": json.dumps(dict(format=2, kind="forest", components=2, seed=0, sha256="") | note)})
    return {"cut short": data[:len(data) // 2], "damaged": b"", "but no scorer": save_tensors(arrays), "upgrade": noted(format=3), "fit and save again": noted(format=1),
            "unknown here": noted(kind="forst"), "checksum": noted()}


@pytest.mark.parametrize("lacking,said", [("components", "lacks components"), ("seed", "lacks seed"), ("known", "lacks known"), ("mean", "lacks mean"),
                                          ("format", "but no scorer"), ("kind", "but no scorer"), ("sha256", "checksum")])
def test_a_scorer_that_lacks_something(tmp_path, lacking, said):
    scorer = ForestScorer().fit(FEATURES)
    arrays = {name: array for name, array in scorer.arrays.items() if name != lacking}
    note = dict(format=2, kind="forest", components=2, seed=0, sha256=anomaly._digest(arrays, "forest", 2, 0))
    note.pop(lacking, None)
    (tmp_path / "kept.safetensors").write_bytes(save_tensors(arrays, {"scorer": json.dumps(note)}))
    with pytest.raises(InputError, match=said): load_scorer(tmp_path / "kept.safetensors")


@pytest.mark.parametrize("note", ["[]", "5", "null"])
def test_a_note_that_is_no_note(tmp_path, note):
    (tmp_path / "kept.safetensors").write_bytes(save_tensors({"mean": np.zeros(3)}, {"scorer": note}))
    with pytest.raises(InputError, match="but no scorer"): load_scorer(tmp_path / "kept.safetensors")


@pytest.mark.parametrize("said", broken(b""))
def test_damaged_files_are_refused(tmp_path, said):
    file = ForestScorer().fit(FEATURES).save(tmp_path / "kept.safetensors")
    file.write_bytes(broken(file.read_bytes())[said])
    with pytest.raises(InputError, match=said): load_scorer(file)


def test_one_changed_byte_is_refused(tmp_path):
    file = ForestScorer().fit(FEATURES).save(tmp_path / "kept.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="checksum"): load_scorer(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"): load_scorer(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("features,said", [(FEATURES[:9], "too few"), (np.ones((30, 3)), "are equal"), (FEATURES[0], "table"),
                                           (np.where(np.arange(N)[:, None] == 3, np.nan, FEATURES), "first in row 3")])
def test_what_cannot_be_fitted(features, said):
    with pytest.raises(InputError, match=said): ForestScorer().fit(features)


def test_another_encoder_is_refused():
    with pytest.raises(InputError, match="12"): ForestScorer().fit(FEATURES).score(FEATURES[:, :5])


# Fusion

def test_fusion_is_the_mean_percentile():
    table = score_anomalies(FEATURES, FEATURES, ["forest", "mahalanobis"])
    assert np.allclose(table.anomaly_score, table[["forest", "mahalanobis"]].rank(pct=True).mean(axis=1) * 100)
    assert np.allclose(table[["forest_robust_z"]].median(), 0)


def test_others_join_by_id_whatever_their_order():
    numbers = pd.DataFrame({"id_str": IDS, "image_mean": np.arange(N) / N})
    by_id = score_anomalies(FEATURES, FEATURES, ["forest"], others=numbers.sample(frac=1, random_state=1), ids=IDS)
    by_row = score_anomalies(FEATURES, FEATURES, ["forest"], others=numbers.drop(columns="id_str"))
    pd.testing.assert_frame_equal(by_id, by_row)
    assert list(by_id.image_mean) == list(numbers.image_mean) and "image_mean_robust_z" in by_id


@pytest.mark.parametrize("others,ids,said", [
    (pd.DataFrame({"a": np.ones(3)}), None, "3 rows"), (pd.DataFrame({"id_str": IDS, "a": 1.}), None, "ids="),
    (pd.DataFrame({"id_str": IDS[1:], "a": 1.}), IDS, "no row"), (pd.DataFrame({"forest": np.ones(N)}), None, "rename"),
    (pd.DataFrame({"a": np.full(N, np.nan)}), None, "cannot be ranked")])
def test_others_that_do_not_fit(others, ids, said):
    with pytest.raises(InputError, match=said): score_anomalies(FEATURES, FEATURES, ["forest"], others=others, ids=ids)


def test_robust_z_of_a_constant_is_nought():
    assert (robust_z(pd.DataFrame({"a": np.ones(5)})) == 0).all().all()


def test_report_at_shares():
    scores = pd.DataFrame({"good": ODD + .1 * RNG.normal(size=N)})
    plain, more = anomaly_report(scores, ODD), anomaly_report(scores, ODD, shares=(.01, .05))
    assert set(plain) == {"average_precision", "lower90", "upper90", "base_rate", "roc_auc", "precision", "recall", "lift"}
    assert plain.index.tolist() == ["good", "random"] and set(plain) < set(more)
    assert more["recall_5%"]["good"] == 1 and more["recall_1%"]["good"] == 4 / 20
    assert more["rws_5%"]["good"] == rank_weighted_score(ODD, scores.good, 20)
    assert (more["recall_1%_lower90"] <= more["recall_1%_upper90"]).all()


@pytest.mark.parametrize("rows", [slice(None), slice(None, None, -1)])
def test_report_of_a_score_that_is_the_same_for_all(rows):
    "Its order is that of the table, which may be sorted by class: it must not count"
    label = np.arange(400)[rows] < 20
    flat = anomaly_report(pd.DataFrame({"flat": np.ones(400)}), label, shares=(.05,)).loc["flat"]
    np.testing.assert_allclose(flat[["recall_5%", "rws_5%", "precision"]].astype(float), .05)
    np.testing.assert_allclose(flat[["recall_5%_lower90", "recall_5%_upper90"]].astype(float), .05)


def test_a_round_whose_scores_are_equal_finds_what_chance_finds():
    class Search:
        def __len__(self): return 0
        def scores(self): return pd.DataFrame({"score": np.ones(400), "label": np.nan})
    truth = np.arange(400) < 20
    for order in (truth, truth[::-1]): assert anomaly._judge_round(Search(), order, 40)["top_share"] == pytest.approx(.05)


@pytest.mark.parametrize("label,said", [(np.where(np.arange(N) < 3, np.nan, ODD), "3 of 400 labels are blank"),
                                        (pd.array([None, *ODD[1:]], "boolean"), "1 of 400 labels are blank"),
                                        (ODD * .7, "row 380 is .*0.7"), (np.where(ODD, "yes", "no"), "true or false")])
def test_labels_that_are_neither(label, said):
    with pytest.raises(InputError, match=said): anomaly_report(pd.DataFrame({"good": ODD}), label)


@pytest.mark.parametrize("kind", [int, float, object, "boolean", str, list])
def test_labels_of_any_kind(kind):
    scores = pd.DataFrame({"good": ODD + .1 * RNG.normal(size=N)})
    label = ODD.tolist() if kind is list else pd.Series(ODD).astype(kind)
    pd.testing.assert_frame_equal(anomaly_report(scores, label), anomaly_report(scores, ODD))


def test_text_is_no_score():
    table = pd.DataFrame({"id_str": IDS, "good": ODD * 1.})
    with pytest.raises(InputError, match=f"column 'id_str' holds '{IDS[0]}' and so on, which are no scores"): anomaly_report(table, ODD)
    others = table.assign(picture="a.png")
    with pytest.raises(InputError, match="column 'picture' holds 'a.png'"): score_anomalies(FEATURES, FEATURES, ["forest"], others=others, ids=IDS)


# A person in the loop

def labelled(tmp_path, strategy="classifier", count=6) -> ActiveSearch:
    "A search with a few labels of both kinds"
    search = ActiveSearch(IDS, FEATURES, tmp_path / "labels.jsonl", strategy)
    for i in range(count // 2):
        search.label(IDS[-1 - i], 1)
        search.label(IDS[i], 0)
    return search


@each_strategy
def test_a_round_is_the_same_by_seed(tmp_path, strategy):
    one, two = (labelled(tmp_path / name, strategy, 12) for name in "ab")
    assert one.next() == two.next() and len(set(one.next())) == 10
    pd.testing.assert_frame_equal(one.scores(), two.scores())


@each_strategy
def test_opened_again_goes_on(tmp_path, strategy):
    search = labelled(tmp_path, strategy, 12)
    search.skip(IDS[50])
    again = ActiveSearch(IDS, FEATURES, tmp_path / "labels.jsonl", strategy)
    assert (again.labels, again.skipped, again.next()) == (search.labels, search.skipped, search.next())


@each_strategy
@pytest.mark.parametrize("label", [None, 0, 1])
def test_one_kind_of_label_is_no_crash(strategy, label):
    search = ActiveSearch(IDS, FEATURES, strategy=strategy)
    for id in IDS[:12] if label is not None else (): search.label(id, label)
    shown = search.next()
    assert len(set(shown)) == 10 and not set(shown) & set(IDS[:12] if label is not None else ())
    if label is None or strategy != "astronomaly": assert "too little to learn from" in search.message
    assert len(search.scores()) == N and np.isfinite(search.scores().score).all()


@each_strategy
def test_what_was_seen_is_not_shown_again(strategy):
    search, seen = ActiveSearch(IDS[-60:], FEATURES[-60:], strategy=strategy), []
    person = simulated_person(IDS, ODD)
    while shown := search.next():
        seen += shown
        for id in shown: search.skip(id) if id.endswith("7") else search.label(id, person(id))
    assert sorted(seen) == IDS[-60:]


def test_every_cut_of_the_file_keeps_whole_labels(tmp_path):
    search = labelled(tmp_path)
    data = search.file.read_bytes()
    starts = [i for i, byte in enumerate(data) if byte == 10]
    for cut in [*range(0, len(data), 7), *(end + more for end in starts for more in (0, 1))]:
        search.file.write_bytes(data[:cut])
        again = ActiveSearch(IDS, FEATURES, search.file, search.strategy)
        assert len(again) == max(sum(end <= cut for end in starts) - 1, 0)   # the first line is the table's
        assert ("cut short" in again.message) == (cut > 0 and data[cut - 1] != 10 and cut not in starts)
        again.label(IDS[70], 1)
        assert ActiveSearch(IDS, FEATURES, search.file, search.strategy).labels == again.labels


@pytest.mark.parametrize("data", [b"my only notes, without a newline at the end", b"id,label\na,1\nb,0", b"\n", b"PAR1\x15\x04\n\xff\xfe",
                                  b'{"id": "J000", "label": 1}\n{"id', b'{"format": 1}', b"[1, 2]\n", b'{"format": 1, "galaxies": 3'])
def test_a_file_of_something_else_is_left_alone(tmp_path, data):
    file = tmp_path / "one.txt"
    file.write_bytes(data)
    with pytest.raises(InputError, match="one.txt is no file of labels"): ActiveSearch(IDS, FEATURES, file)
    assert file.read_bytes() == data and list(tmp_path.iterdir()) == [file]


def test_a_cut_line_stays_where_the_file_is_refused(tmp_path):
    search = labelled(tmp_path)
    data = search.file.read_bytes().replace(IDS[0].encode(), b"other") + b'{"id'
    search.file.write_bytes(data)
    with pytest.raises(InputError, match="no galaxy"): ActiveSearch(IDS, FEATURES, search.file)
    with pytest.raises(InputError, match="another table"): ActiveSearch(IDS, FEATURES + 1, search.file)
    assert search.file.read_bytes() == data


def test_two_sessions_do_not_mix(tmp_path):
    a = ActiveSearch(IDS, FEATURES, tmp_path)
    b = ActiveSearch(IDS, FEATURES, tmp_path, a.strategy)
    a.label(IDS[0], 1)
    said = a.file.read_bytes()
    for refused in (lambda: b.label(IDS[1], 0), lambda: b.skip(IDS[2])):
        with pytest.raises(InputError, match="another session wrote"): refused()
    assert a.file.read_bytes() == said and not b.history and not b.labels
    a.skip(IDS[3])
    assert a.undo() == IDS[3]
    b = ActiveSearch(IDS, FEATURES, tmp_path, a.strategy)
    b.label(IDS[1], 0)
    before = a.history.copy()
    with pytest.raises(InputError, match="another session wrote"): a.undo()
    assert a.history == before and a.labels == {IDS[0]: 1}
    assert ActiveSearch(IDS, FEATURES, tmp_path, a.strategy).labels == b.labels == {IDS[0]: 1, IDS[1]: 0}


def test_a_file_that_grows_while_it_is_opened_is_not_cut(tmp_path):
    search = labelled(tmp_path)
    whole = search.file.read_bytes()
    with pytest.raises(InputError, match="another session is writing"): search._mend(whole[:-9], b"shorter")
    assert search.file.read_bytes() == whole


def test_a_file_taken_away_is_not_begun_in_the_middle(tmp_path):
    search = labelled(tmp_path)
    search.file.unlink()
    with pytest.raises(InputError, match="cannot be written"): search.label(IDS[9], 1)
    assert not search.file.exists() and len(search) == 6


def test_a_damaged_line_in_the_middle_is_named_and_kept(tmp_path):
    search = labelled(tmp_path)
    lines = search.file.read_bytes().split(b"\n")
    lines[2] = b"\x00\x00"
    search.file.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match="line 3"): ActiveSearch(IDS, FEATURES, search.file)
    assert search.file.read_bytes() == b"\n".join(lines)


def test_contradictory_labels(tmp_path):
    search = ActiveSearch(IDS, FEATURES, tmp_path)
    search.label(IDS[0], 0)
    search.label(IDS[0], 1)
    assert "before" in search.message and search.labels == {IDS[0]: 1}
    assert [line["label"] for line in search.history] == [0, 1]
    assert (tmp_path / "labels.jsonl").read_text().count(IDS[0]) == 2
    search.undo()
    assert search.labels == {IDS[0]: 0}


def test_undo_takes_back_one_thing_at_a_time(tmp_path):
    search = ActiveSearch(IDS, FEATURES, tmp_path)
    search.label(IDS[0], .3)
    search.skip(IDS[1])
    search.skip(IDS[0])
    assert search.skipped == {IDS[1]} and search.labels == {IDS[0]: .3}   # a label is more than a skip
    assert [search.undo(), search.undo(), search.undo()] == [IDS[0], IDS[1], IDS[0]]
    assert not search.labels and not search.skipped
    with pytest.raises(InputError, match="nothing to undo"): search.undo()
    assert len(ActiveSearch(IDS, FEATURES, tmp_path)) == 0


@pytest.mark.parametrize("id,value,said", [("J9", 1, "no galaxy"), (IDS[0], 1.5, "1.5"), (IDS[0], -1, "from 0"), (IDS[0], "yes", "yes"),
                                           (IDS[0], np.nan, "nan"), (IDS[0], None, "None")])
def test_what_is_no_label_is_not_written(tmp_path, id, value, said):
    search = labelled(tmp_path)
    before = search.file.read_bytes()
    with pytest.raises(InputError, match=said): search.label(id, value)
    assert search.file.read_bytes() == before and len(search) == 6


@pytest.mark.parametrize("ids,features", [(IDS, FEATURES + 1), (IDS[::-1], FEATURES), (IDS[:-1], FEATURES[:-1])])
def test_labels_of_another_table_are_refused(tmp_path, ids, features):
    file = labelled(tmp_path).file
    before = file.read_bytes()
    with pytest.raises(InputError, match="another table"): ActiveSearch(ids, features, file)
    assert file.read_bytes() == before


def test_everything_is_labelled():
    for name in STRATEGIES:
        strategy = STRATEGIES[name](FEATURES[-30:])
        score, order = strategy.learn(np.arange(30), ODD[-30:].astype(float), np.random.default_rng(0))
        assert np.isfinite(score).all(), name


def test_no_bit_of_a_scorer_can_change_unseen(tmp_path):
    file = ForestScorer(seed=3).fit(FEATURES[:60]).save(tmp_path / "s.safetensors")
    data, damaged, score = file.read_bytes(), tmp_path / "d.safetensors", load_scorer(file).score(FEATURES)
    end = int.from_bytes(data[:8], "little") + 8
    for place in (data.index(b"seed") + 8, *range(8, end, 7)):
        for bit in (1, 4):
            damaged.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1:])
            try: again = load_scorer(damaged).score(FEATURES)
            except InputError: continue
            np.testing.assert_array_equal(again, score)


def test_a_disk_with_room_for_half_a_line(tmp_path):
    "The half goes, and the label can be said again in the same session"
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_anomaly import *
search = ActiveSearch(IDS, FEATURES, {str(tmp_path)!r})
for i in range(5): search.label(IDS[i], i % 2)
before = search.file.read_bytes()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limit[1]))
with pytest.raises(InputError, match="cannot be written .*say it again"): search.label(IDS[9], 1)
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
assert search.file.read_bytes() == before
search.label(IDS[9], 1)
assert len(ActiveSearch(IDS, FEATURES, {str(tmp_path)!r})) == 6
"""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_loses_no_label(tmp_path, monkeypatch):
    search = labelled(tmp_path)
    before = search.file.read_bytes()
    def full(handle): raise OSError(28, "No space left on device")
    monkeypatch.setattr(anomaly.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"): search.label(IDS[9], 1)
    monkeypatch.undo()
    assert search.file.read_bytes() == before and len(search) == 6
    search.label(IDS[9], 1)
    assert len(ActiveSearch(IDS, FEATURES, search.file)) == 7


@pytest.mark.parametrize("ids,features,said", [(IDS[:19], FEATURES[:19], "too few"), (IDS, FEATURES[:9], "400 ids"), (["a"] * N, FEATURES, "more than once"),
                                               (IDS, np.where(FEATURES > 3, np.nan, FEATURES), "not finite")])
def test_tables_that_cannot_be_searched(ids, features, said):
    with pytest.raises(InputError, match=said): ActiveSearch(ids, features)


def test_an_unknown_strategy_names_its_neighbours():
    with pytest.raises(InputError, match="classifier"): ActiveSearch(IDS, FEATURES, strategy="clasifier")


def test_a_class_of_two_kinds_is_found_whole():
    "The likeliest are like what was found: the other kind is met because every group of the strange is looked at"
    kinds = np.zeros(N, int)
    kinds[-40:-20], kinds[-20:] = 1, 2
    apart = FEATURES.copy()
    apart[-40:] = FEATURES[:40]
    apart[kinds == 1, 0] += 12
    apart[kinds == 2, 1] -= 12
    search, person = ActiveSearch(IDS, apart), simulated_person(IDS, kinds > 0)
    search.label(IDS[-1], 1)
    search.label(IDS[0], 0)
    groups = search.strategy.groups
    assert len(search.strategy.unseen([], np.random.default_rng(0))) == len(np.unique(groups))
    assert not np.isin(search.strategy.odd[groups == groups[0]], search.strategy.unseen([search.strategy.odd[0]], np.random.default_rng(0))).any()
    tenth = search.next(10)[9]
    assert search.rows[tenth] in search.strategy.odd
    for _ in range(6):
        for id in search.next(): search.label(id, person(id))
    found = [kinds[search.rows[id]] for id, value in search.labels.items() if value]
    assert found.count(1) > 15 and found.count(2) > 15


def test_a_simulated_search_ends():
    few = simulate_search(FEATURES[-60:], ODD[-60:], labels=200, n=25, runs=1)
    assert few.labels.tolist() == [25, 50, 60] and few.found.iloc[-1] == 20
    for n in (0, -1):
        with pytest.raises(InputError, match=f"n={n} "): simulate_search(FEATURES, ODD, n=n)
    with pytest.raises(InputError, match="did you mean 'classifier'"): simulate_search(FEATURES, ODD, "clasifier")


def test_choosing_beats_chance():
    last = {s: simulate_search(FEATURES, ODD, s, labels=40, runs=1, top=20).groupby("labels").mean(numeric_only=True).loc[40] for s in STRATEGIES}
    assert last["classifier"].found > 2 * last["random"].found
    assert last["classifier"].average_precision > .9
    assert all(np.isfinite(row.average_precision) for row in last.values())


def test_fractions_of_volunteers_teach(tmp_path):
    search = ActiveSearch(IDS, FEATURES)
    for i in range(10):
        search.label(IDS[-1 - i], .9)
        search.label(IDS[i], .2)
    assert search.scores().score[ODD].mean() > search.scores().score[~ODD].mean()


# Why one is odd

def test_why_odd_shows_the_planted_one():
    pixels = torch.randint(0, 255, (N, 3, 16, 16), dtype=torch.uint8)
    scores = score_anomalies(FEATURES[~ODD], FEATURES, ["forest", "lof"])[["forest", "lof"]]
    plain = why_odd(N - 1, pixels, FEATURES, ~ODD, scores)
    more = why_odd(0, pixels, FEATURES, ~ODD, scores, torch.zeros(3, 16, 16), neighbours=3)   # normal itself: not its own neighbour
    count = [sum(bool(ax.images) for ax in fig.axes) for fig in (plain, more)]
    assert count == [1 + 5 + 12, 1 + 2 + 3 + 12]
