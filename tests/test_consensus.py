"What people found interesting and what a machine said: fits, readers, tags, rankings, and every refusal"

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from scipy.optimize import minimize
from scipy.stats import beta, betabinom
from sklearn.metrics import roc_auc_score

from gz_nbdev.consensus import (
    TAG_FAMILIES,
    BetaBinomial,
    auc_interval,
    effective_votes,
    fit_beta_binomial,
    group_tags,
    join_scores,
    normal_tag,
    pca_map,
    percentile_sets,
    plot_map,
    plot_ranking,
    plot_scores,
    plot_tags,
    plot_votes,
    read_comments,
    read_consensus,
    read_latents,
    read_scores,
    read_tags,
    score_interest,
    shrink,
    simulate_project,
    tag_interest,
    tagged_subjects,
    talk_activity,
    umap_map,
    weight_curve,
    weighted_score,
)
from gz_nbdev.schema import InputError

TABLE = "latest_consensus_aggregation_table.dat"
TAGS, COMMENTS = "project-1-tags_2026-01-01.json", "project-1-comments_2026-01-01.json"
real = pytest.mark.skipif(not os.environ.get("GZ_DATA"), reason="needs the real tables: set GZ_DATA")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A simulated project: its folder and its truth"
    root = tmp_path_factory.mktemp("project")
    return root, simulate_project(root, 3000, seed=3)


@pytest.fixture(scope="module")
def votes(project): return read_consensus(project[0] / TABLE)


def counts(**columns) -> pd.DataFrame:
    "A healthy table of three subjects"
    table = pd.DataFrame(dict(subject_id=["1", "2", "3"], count=[17, 20, 10], selected_count=[3, 0, 9]))
    return table.assign(unique_user_count=[12, 20, 10]).assign(**columns)


def tag_rows(*names, **row):
    "Rows of a Talk export"
    one = dict(user_id=1, user_login="someone", created_at="2026", taggable_type="Subject")
    return [one | dict(id=i, name=name, taggable_id=i) | row for i, name in enumerate(names)]


def write_json(path, rows):
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


# --- fits

@pytest.mark.parametrize("a, b", [(.6, 5.5), (2., 2.), (.2, 8.)])
def test_both_fits_recover_the_truth(a, b):
    rng = np.random.default_rng(0)
    n = rng.integers(5, 40, 100_000)
    k = rng.binomial(n, rng.beta(a, b, len(n)))
    for method, tolerance in (("moments", .1), ("likelihood", .05)):
        fit = fit_beta_binomial(k, n, method)
        np.testing.assert_allclose([fit.a, fit.b], [a, b], rtol=tolerance)
        assert fit.subjects == len(n) and fit.method == method


def test_likelihood_is_the_largest_that_scipy_finds():
    rng = np.random.default_rng(1)
    n = rng.integers(2, 30, 300)
    k = rng.binomial(n, rng.beta(.8, 3, 300))
    fit = fit_beta_binomial(k, n)
    options = dict(xatol=1e-6, fatol=1e-9)
    found = minimize(lambda x: -betabinom.logpmf(k, n, *np.exp(x)).sum(), [0, 0], method="Nelder-Mead", options=options)
    np.testing.assert_allclose([fit.a, fit.b], np.exp(found.x), rtol=1e-4)
    np.testing.assert_allclose(fit.log_chance(k, n), betabinom.logpmf(k, n, fit.a, fit.b), rtol=1e-8)


def test_moments_by_hand():
    "m = .25, v = .0625, of which chance is a tenth of m(1-m) + .9 rho: rho = (1/3 - .1) / .9"
    fit = fit_beta_binomial([0, 5], [10, 10], "moments")
    strength = 1 / ((1 / 3 - .1) / .9) - 1
    np.testing.assert_allclose([fit.a, fit.b], [.25 * strength, .75 * strength])


def test_subjects_without_views_tell_nothing_and_get_what_is_known_before():
    k, n = np.array([0, 3, 8, 1]), np.array([10, 12, 9, 11])
    fit = fit_beta_binomial(k, n)
    assert fit_beta_binomial([*k, 0], [*n, 0]) == fit
    blank = shrink(pd.DataFrame(dict(id_str=["a", "b"], viewed=[0, 10], selected=[0, 2])), fit)
    assert np.isnan(blank.fraction[0]) and blank.posterior[0] == pytest.approx(fit.mean)


def test_posterior_is_beta_and_rows_stay_in_order():
    fit, k, n = BetaBinomial(.5, 5), np.array([3, 0, 9, 3]), np.array([17, 4, 9, 17])
    out = fit.posterior(k, n)
    np.testing.assert_allclose(out[["lower90", "upper90"]], np.transpose(beta.interval(.9, .5 + k, 5 + n - k)))
    np.testing.assert_allclose(out.posterior, (.5 + k) / (5.5 + n))


def test_shrink_keeps_rows_under_a_repeated_index():
    table = read_consensus(counts()).set_axis([7, 7, 7])
    out = shrink(table, BetaBinomial(1, 1))
    assert len(out) == 3 and out.posterior.tolist() == pytest.approx([4 / 19, 1 / 22, 10 / 12])


@pytest.mark.parametrize("k, n, message", [
    ([5, 12], [17, 10], r"More selections than views .* in 1 subject; the first: row 1, selected 12 of 10"),
    ([-1, 2], [10, 10], "Negative counts in 1 subject; the first: row 0"),
    ([np.nan, 2], [10, 10], "missing or not finite.*row 0"),
    ([np.inf, 2], [10, 10], "missing or not finite"),
    ([1, 2, 3], [10, 10], r"shape \(3,\).*shape \(2,\)"),
    ([], [], "the table is empty"),
    (["a", "b"], [1, 2], "counts, numbers"),
    ([0, 0], [10, 10], "selected never"),
    ([10, 10], [10, 10], "selected always"),
    ([1, 0], [1, 1], "viewed twice"),
    ([2, 2, 2], [20, 20, 20], "no more than chance"),
])
@pytest.mark.parametrize("method", ["moments", "likelihood"])
def test_counts_that_cannot_be_fitted(k, n, message, method):
    with pytest.raises(InputError, match=message): fit_beta_binomial(k, n, method)


def test_unknown_method():
    with pytest.raises(InputError, match="did you mean 'moments'"): fit_beta_binomial([1, 2], [3, 4], "moment")


def test_people_instead_of_views(project, votes):
    "Intervals from views are too narrow when people come back; those from people hold what they promise"
    truth, people = project[1], effective_votes(votes)
    np.testing.assert_allclose(people.selected / people.viewed, votes.selected / votes.viewed)
    assert (people.viewed == votes.users).all()
    held = [(table.lower90 <= truth.fraction).mul(truth.fraction <= table.upper90).mean()
            for table in (shrink(votes), shrink(people))]
    assert held[0] < .87 < held[1] < .93
    half = effective_votes(pd.DataFrame(dict(viewed=[22, 14], selected=[11, 7], users=[13, 11])))
    assert (half.selected / half.viewed == .5).all()  # exactly: no majority is lost to rounding


# --- tables of counts

def test_read_consensus_keeps_long_ids_and_any_names(tmp_path):
    ids = ["587739505552785605", "587739505552785606", "00123"]
    path = tmp_path / "t.csv"
    counts(subject_id=ids).rename(columns={"count": "seen", "selected_count": "liked"}).to_csv(path, index=False)
    table = read_consensus(path, names=dict(viewed="seen", selected="liked"))
    assert table.id_str.tolist() == ids and list(table) == ["id_str", "viewed", "selected", "users"]
    assert "users" not in read_consensus(counts().drop(columns="unique_user_count"))


@pytest.mark.parametrize("columns, message", [
    (dict(selected_count=[3, 21, 9]), "'2', selected 21 of 20"),
    (dict(selected_count=[3, -1, 9]), "Negative counts .*'2'"),
    (dict(selected_count=[3, .5, 9]), "not whole .*'2'.*fractions"),
    (dict(selected_count=[3, None, 9]), "missing or not finite"),
    (dict(count=[17, 1e300, 10]), r"beyond 1,000,000,000\) in 1 subject \(the first: '2' in row 1, viewed 1e\+300"),
    (dict(unique_user_count=[12, 20, 1.5]), "not whole.*'3' in row 2, users 1.5"),
    (dict(unique_user_count=[12, None, 10]), "'2' in row 1, users nan"),
    (dict(unique_user_count=pd.array([12, None, 10], "Int64")), "'2' in row 1, users <NA>"),
    (dict(selected_count=["3", "many", "9"]), "counts, numbers"),
    (dict(unique_user_count=[12, 21, 10]), "21 users in 20 views"),
    (dict(unique_user_count=[12, 0, 10]), "0 users in 20 views"),
    (dict(subject_id=["1", "2", "2"]), r"came before in 1 row of .* \(2\)"),
    (dict(subject_id=["1", "", "2"]), "No id in 1 row of .*, the first is row 1"),
    (dict(subject_id=["1", None, "2"]), "No id in 1 row of .*, the first is row 1"),
])
def test_read_consensus_refuses(columns, message):
    with pytest.raises(InputError, match=message): read_consensus(counts(**columns))


def test_ids_under_any_name_keep_their_zeros(tmp_path):
    counts(subject_id=["001", "002", "010"]).rename(columns={"subject_id": "number"}).to_csv(tmp_path / "t.csv", index=False)
    assert read_consensus(tmp_path / "t.csv", {"id_str": "number"}).id_str.tolist() == ["001", "002", "010"]


def test_counts_written_with_a_point_are_whole():
    assert read_consensus(counts(count=["17.0", "20.0", "10.0"])).viewed.tolist() == [17, 20, 10]


def test_read_consensus_missing_columns_and_files(tmp_path):
    with pytest.raises(InputError, match="No column tells 'selected'.*did you mean 'selectedcount'"):
        read_consensus(counts().rename(columns={"selected_count": "selectedcount"}))
    with pytest.raises(InputError, match="no column 'like': did you mean 'liked'"):
        read_consensus(counts(liked=1), names={"selected": "like"})
    with pytest.raises(InputError, match="no entry 'select': did you mean 'selected'"):
        read_consensus(counts(), names={"select": "count"})
    with pytest.raises(InputError, match="it has no rows"): read_consensus(counts().iloc[:0])
    (tmp_path / "empty.dat").write_text("")
    with pytest.raises(InputError, match="empty"): read_consensus(tmp_path / "empty.dat")
    (tmp_path / "page.dat").write_text("\n<!DOCTYPE html>\n<html><body>Sign in</body></html>")
    with pytest.raises(InputError, match="page.dat is a web page"): read_consensus(tmp_path / "page.dat")
    (tmp_path / "page.xml").write_text('<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0"><html>')
    with pytest.raises(InputError, match="page.xml is a web page"): read_consensus(tmp_path / "page.xml")
    with pytest.raises(InputError, match="did you mean 'empty.dat'"): read_consensus(tmp_path / "emty.dat")


def test_read_consensus_from_a_votable(tmp_path):
    Table.from_pandas(counts()).write(tmp_path / "t.xml", format="votable")
    pd.testing.assert_frame_equal(read_consensus(tmp_path / "t.xml"), read_consensus(counts()))


# --- Talk

def test_read_tags_drops_names_and_what_is_about_no_subject(tmp_path):
    rows = tag_rows("ring", "bar", "Ring") + tag_rows("x", taggable_id=None, taggable_type=None)
    rows += tag_rows("y", taggable_id=88387883.0)
    table = read_tags(write_json(tmp_path / "t.json", rows))
    assert list(table) == ["id_str", "tag", "user", "created"] and table.attrs["left_out"] == 1
    assert table.id_str.tolist() == ["0", "1", "2", "88387883"] and "someone" not in table.to_csv()


def test_tags_without_a_name_are_left_out(tmp_path):
    table = read_tags(write_json(tmp_path / "t.json", tag_rows("ring", None, "bar") + tag_rows("lens", user_id=None)))
    assert table.tag.tolist() == ["ring", "bar", "lens"] and table.attrs["left_out"] == 1
    assert table.user.tolist() == ["1", "1", ""]
    with pytest.raises(InputError, match="has a name"): read_tags(write_json(tmp_path / "t.json", tag_rows(None)))


@pytest.mark.parametrize("text, message", [
    ('[{"id": 1, "na', "not whole JSON"),
    ("", "not whole JSON"),
    ("[" * 100_000, "not whole JSON"),
    ("<!DOCTYPE html><html>", "is a web page"),
    ('{"tags": []}', "expected a list of tags"),
    ("[1, 2]", "expected a list of tags"),
    ("[]", "holds no tags"),
    (json.dumps(tag_rows("a", taggable_type="Board")), "none is about a subject"),
    (json.dumps([{"tag_name": "a"}]), "tag 0 has no 'taggable_id'"),
    (json.dumps([{"names" if k == "name" else k: v for k, v in tag_rows("a")[0].items()}]), "did you mean 'names'"),
])
def test_broken_talk_exports(tmp_path, text, message):
    with pytest.raises(InputError, match=message): read_tags(write_json(tmp_path / "t.json", text))


def test_other_broken_talk_files(tmp_path):
    (tmp_path / "t.json").write_bytes(b"\x1f\x8b\x08\x00\xff\xff")  # still packed
    with pytest.raises(InputError, match="unpack the export"): read_comments(tmp_path / "t.json")
    with pytest.raises(InputError, match="did you mean 't.json'"): read_tags(tmp_path / "tt.json")
    write_json(tmp_path / "tags.json", tag_rows("a"))
    with pytest.raises(InputError, match="no 'comment_focus_id'"): read_comments(tmp_path / "tags.json")


@pytest.mark.parametrize("tag, family", [
    ("Mergers", "merger"), ("MERGING", "merger"), ("interacting_galaxies", "merger"), ("meger", "merger"),
    ("post merger", "merger"), ("ringgalaxy", "ring"), ("Outer-Rings", "ring"), ("ringed", "ring"),
    ("gravitatational_lens", "lens"), ("lenses", "lens"), ("arcs", "lens"), ("einstein_ring", "lens"),
    ("barlens", "bar"), ("bar-lens", "bar"), ("Tidal tails", "tidal"), ("artifact", "artefact"),
    ("satellite-trails", "artefact"), ("trail", "trail"), ("tail", "tidal"), ("starforming", "star formation"),
    ("no_lens", ""), ("not_interesting", ""), ("symmetry", ""), ("interesting", "praise"),
    ("barred_spiral", "bar, spiral"), ("clum", ""), ("galaxies", ""), ("Galaxy Clusters", "cluster"),
    ("86412446", ""), ("???", ""), ("", ""),
])
def test_families(tag, family):
    assert group_tags(pd.DataFrame(dict(id_str=["1"], tag=[tag]))).families.tolist() == [family]


def test_normal_form():
    tags = ["Mergers", "outer_Rings", "Lenses", "Galaxies", "nucleus", "mass", "  Étoile__!"]
    assert [normal_tag(tag) for tag in tags] == ["merger", "outer-ring", "lens", "galaxy", "nucleus", "mass", "etoile"]


def test_families_are_data():
    tags = pd.DataFrame(dict(id_str=["1", "1", "2"], tag=["Green Peas", "green_pea", "ring"]))
    table = group_tags(tags, {"pea, green": ["green-pea"]})
    assert dict(zip(table.tag, table.families))["green_pea"] == "pea, green"
    assert tagged_subjects(tags, {"pea, green": ["green-pea"]}).values.tolist() == [["1", "pea, green"], ["2", ""]]
    with pytest.raises(InputError, match="two families, 'a' and 'b'"): group_tags(tags, {"a": "ring", "b": "rings"})
    with pytest.raises(InputError, match="phrase without letters"): group_tags(tags, {"a": ["--"]})
    with pytest.raises(InputError, match="no families"): group_tags(tags, {})
    with pytest.raises(InputError, match="no column 'tag': did you mean 'tags'"):
        group_tags(tags.rename(columns={"tag": "tags"}))
    for family, phrases in TAG_FAMILIES.items():  # each phrase is in the form that tags are brought to
        assert phrases.split() == [normal_tag(phrase) for phrase in phrases.split()], family


def test_hostile_tags_are_text(tmp_path):
    evil = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script> ring", "$\\frac{1$", "\u202e\x00ring",
            "a" * 100_000, "{0} %s"]
    tags = read_tags(write_json(tmp_path / "t.json", tag_rows(*evil)))
    table = group_tags(tags)
    shown = table._repr_html_()
    assert "<img" not in shown and "<script>alert" not in shown
    assert tags.tag.tolist() == evil and (table.families == "ring").sum() == 2
    ids = [str(i) for i in range(50)]
    crowd = tag_interest(pd.DataFrame(dict(id_str=ids, fraction=np.linspace(0, 1, 50))),
                         pd.DataFrame(dict(id_str=ids[:12], family=evil[2])), min_subjects=1)
    places = np.random.default_rng(0).normal(size=(6, 2))
    for figure in (plot_tags(crowd), plot_map(places, evil[:3] * 2), plot_map(places, np.arange(6), evil[2]),
                   plot_votes(pd.DataFrame(dict(viewed=[5, 5], selected=[1, 3])), {evil[2]: BetaBinomial(1, 1)})):
        figure.savefig(io.BytesIO())  # a formula that is none would fail here


# --- AUC

def test_auc_is_that_of_sklearn_with_ties():
    rng = np.random.default_rng(2)
    label, score = rng.random(500) < .1, rng.integers(0, 9, 500)
    assert auc_interval(label, score)[0] == pytest.approx(roc_auc_score(label, score))
    value, low, high = auc_interval(label, score)
    np.testing.assert_allclose(auc_interval(label, -score), [1 - value, 1 - high, 1 - low])


def test_auc_interval_by_hand():
    "Placements of the positives and of the negatives, their variances, the logit"
    plus, minus = np.array([.9, .5, .2]), np.array([.6, .2, .1, .0])
    beats = (plus[:, None] > minus) + (plus[:, None] == minus) / 2
    auc = beats.mean()
    spread = np.sqrt(beats.mean(1).var(ddof=1) / 3 + beats.mean(0).var(ddof=1) / 4) / (auc * (1 - auc))
    ends = 1 / (1 + np.exp(-(np.log(auc / (1 - auc)) + np.array([-1, 1]) * 1.6448536 * spread)))
    np.testing.assert_allclose(auc_interval([1, 1, 1, 0, 0, 0, 0], [*plus, *minus]), [auc, *ends], rtol=1e-6)


def test_auc_interval_holds_the_truth_as_often_as_it_says():
    "Two normal distributions one sigma apart: the AUC is Phi(1 / sqrt 2) = .7602"
    rng, label, inside = np.random.default_rng(4), np.arange(240) < 40, 0
    for _ in range(400):
        _, low, high = auc_interval(label, rng.normal(size=240) + label)
        inside += low < .76025 < high
    assert .85 < inside / 400 < .94


def test_auc_edges():
    assert auc_interval([0, 0, 1], [1, 2, 3])[0] == 1 and np.isnan(auc_interval([0, 0, 1], [1, 2, 3])[1])
    with pytest.raises(InputError, match="All 2 subjects have the same label"): auc_interval([1, 1], [1, 2])
    with pytest.raises(InputError, match="1 of 2 scores are not finite numbers, the first in row 1"):
        auc_interval([0, 1], [1, np.nan])
    with pytest.raises(InputError, match="3 labels for 2 scores"): auc_interval([0, 1, 1], [1, 2])


def test_auc_of_labels_that_are_text_blank_or_between():
    score = [.1, .2, .9, .3]
    for label in (["0", "0", "1", "0"], ["False", "false", "True", "False"], [0., 0., 1., 0.]):
        assert auc_interval(label, score)[0] == 1
    with pytest.raises(InputError, match="1 of 4 labels are blank, the first in row 2"):
        auc_interval([0, 0, np.nan, 1], score)
    with pytest.raises(InputError, match="the label in row 1 is .*0.05"): auc_interval([0, .05, 1, 0], score)


def test_tag_interest(project, votes):
    interest, tags = shrink(votes), read_tags(project[0] / TAGS)
    crowd = tag_interest(interest, tagged_subjects(tags))
    assert crowd.auc.iloc[1:].is_monotonic_decreasing
    assert crowd.index[0] == "any tag" and crowd.auc["merger"] > crowd.auc["lens"]
    ids = tagged_subjects(tags).query("family == 'ring'").id_str
    label = interest.id_str.isin(ids)
    assert crowd.subjects["ring"] == len(ids) and crowd.base_rate["ring"] == pytest.approx(label.mean())
    assert crowd.auc["ring"] == pytest.approx(roc_auc_score(label, interest.fraction))
    tagged = interest.id_str.isin(tags.id_str)
    assert crowd.auc_among_tagged["ring"] == pytest.approx(roc_auc_score(label[tagged], interest.fraction[tagged]))
    with pytest.raises(InputError, match="None of 3,000 subjects .* among the tags"):
        tag_interest(interest, pd.DataFrame(dict(id_str=["x1"], family=["ring"])))
    activity = talk_activity(interest, tags, read_comments(project[0] / COMMENTS))
    assert activity.subjects.sum() == 3000 and (activity.tagged <= activity.discussed).all()
    assert (activity.tags * activity.subjects).sum() == pytest.approx(len(tags))


# --- scores

def test_read_scores_in_both_published_forms(tmp_path):
    a = read_scores(pd.DataFrame(dict(Filename=["70342656546334671.png", "70369173674420820.png"], RA=[1., 2.],
                                      AnomalyScore=[1., 2.], volunteer_rating=[.5, .2],
                                      expert_fraction=[68.75, np.nan])))
    assert a.id_str.tolist() == ["70342656546334671", "70369173674420820"] and a.expert_fraction[0] == .6875
    (tmp_path / "all.csv").write_text("subject_id,filename,anomaly_score,image_score,feature_score\n"
                                      "86394676,69590307125089141,1,2,3\n")
    b = read_scores(tmp_path / "all.csv")
    assert b.loc[0].tolist() == ["86394676", "69590307125089141", 1, 2, 3]


def test_pictures_of_one_name_in_two_folders_are_refused_as_ids():
    names = ["a/1.png", "b/1.jpg"]
    with pytest.raises(InputError, match="1 row of the scores, folder and suffix cut off \\('?1'?\\)"):
        read_scores(pd.DataFrame(dict(filename=names, anomaly_score=[1, 2])))
    table = read_scores(pd.DataFrame(dict(filename=names, subject_id=["7", "8"], anomaly_score=[1, 2])))
    assert table.id_str.tolist() == ["7", "8"] and table.picture.tolist() == ["1", "1"]


@pytest.mark.parametrize("names, pictures", [
    (["a.png", "a.png"], ["a", "a"]), (["a.png", ""], ["a", ""]), (["b/00012.PNG", "c\\d.JPG"], ["00012", "d"]),
    (["", ""], ["", ""])])
def test_pictures_beside_ids_may_be_blank_or_shared(tmp_path, names, pictures):
    table = pd.DataFrame(dict(subject_id=[1, 2], filename=names, anomaly_score=[3, 4]))
    table.to_csv(tmp_path / "s.csv", index=False)
    for source in (tmp_path / "s.csv", table, table.replace("", np.nan)):
        read = read_scores(source)
        assert read.id_str.tolist() == ["1", "2"] and read.picture.tolist() == pictures


def test_numbers_of_pictures_that_lost_digits_are_refused_beside_ids():
    with pytest.raises(InputError, match="numbers with a point"):
        read_scores(pd.DataFrame(dict(subject_id=["1", "2"], filename=[7e16, np.nan], a_score=[1., 2.])))


def test_suffixes_of_pictures_go_in_capitals_too():
    table = read_scores(pd.DataFrame(dict(filename=["a/1.PNG", "2.Jpeg", "3.FITS"], a_score=[1, 2, 3])))
    assert table.id_str.tolist() == ["1", "2", "3"]


def test_read_scores_keeps_zeros_and_refuses_blanks(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("filename,anomaly_score\n00000,1\n00001,2\n")
    assert read_scores(path).id_str.tolist() == ["00000", "00001"]
    path.write_text("Filename;AnomalyScore\n00000;1\n;2\n")
    with pytest.raises(InputError, match="No id in 1 row of the scores, the first is row 1"): read_scores(path)
    path.write_text("filename,anomaly_score\n7.03e16,1\n7.04e16,2\n")
    with pytest.raises(InputError, match="numbers with a point"): read_scores(path)


def test_ids_of_a_table_below_comments(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("# made by hand\nsubject,selected,viewed\n007,1,20\n008,2,20\n")
    assert read_consensus(path, {"id_str": "subject"}).id_str.tolist() == ["007", "008"]


@pytest.mark.parametrize("blank", [["a", None], ["a", np.nan], pd.array([1, None], "Int64")])
def test_blank_ids_of_scores(blank):
    with pytest.raises(InputError, match="No id in 1 row"):
        read_scores(pd.DataFrame(dict(filename=blank, anomaly_score=[1, 2])))


@pytest.mark.parametrize("columns, message", [
    (dict(), "No column is a score.*did you mean 'anomaly_scor'"),
    (dict(anomaly_score=["1", "x"]), "Column 'anomaly_score': 'x' in row 1"),
    (dict(anomaly_score=[1, np.inf]), "'inf' in row 1 is no finite number"),
    (dict(anomaly_score=[1, 2], volunteer_rating=[.5, 3]), "'volunteer_rating' should lie in 0 to 1"),
    (dict(anomaly_score=[1, 2], id_str=["a", "a"]), "came before in 1 row of the scores"),
])
def test_read_scores_refuses(columns, message):
    table = pd.DataFrame(dict(id_str=["a", "b"], anomaly_scor=[1, 2])).assign(**columns)
    with pytest.raises(InputError, match=message): read_scores(table)


def test_read_scores_of_no_table(tmp_path):
    (tmp_path / "s.csv").write_text("<html>")
    with pytest.raises(InputError, match="web page"): read_scores(tmp_path / "s.csv")
    with pytest.raises(InputError, match="has no rows"): read_scores(pd.DataFrame(columns=["id_str", "a_score"]))
    with pytest.raises(InputError, match="No column names the subjects"): read_scores(pd.DataFrame(dict(a_score=[1.])))
    with pytest.raises(InputError, match="numbers with a point"):
        read_scores(pd.DataFrame(dict(filename=[1e16, 2e16], a_score=[1., 2.])))


def test_scores_of_another_project(project, votes):
    scores = read_scores(project[0] / "all_ww_data.csv")
    assert len(join_scores(shrink(votes), scores)) == 3000
    with pytest.raises(InputError, match="None of 3,000 subjects .* is among the scores .* same project"):
        join_scores(shrink(votes), scores.assign(id_str="x" + scores.id_str))


def test_weighted_score():
    np.testing.assert_allclose(weighted_score([207.23587], [259.62997]), [217.71469], atol=1e-4)  # a published row
    with pytest.raises(InputError, match="between 0 and 1"): weighted_score([1], [1], -.1)
    with pytest.raises(InputError, match="2 image scores for 1"): weighted_score([1, 2], [1])


def test_head_of_the_list_beside_the_auc():
    "900 dull, 97 finds above them, and three artefacts on top: a good AUC, and a list that starts with nothing"
    interest = np.r_[np.zeros(900), np.full(97, .8), np.zeros(3)]
    table = score_interest(pd.DataFrame(dict(score=np.arange(1000.))), interest, n=3)
    row = table.loc["score"]
    assert row.roc_auc == pytest.approx(900 / 903) and row.hits == 0 and row.precision == 0 and row.rank_weighted == 0
    assert row.precision_lower90 == 0 and row.precision_upper90 == pytest.approx(beta.ppf(.95, .5, 3.5))
    assert row.base_rate == .097 and row.subjects == 1000 and row.positives == 97
    half = 1.6448536 * np.sqrt((1 + row.spearman ** 2 / 2) / 997)
    assert np.arctanh(row.spearman_upper90) == pytest.approx(np.arctanh(row.spearman) + half)
    assert np.arctanh(row.spearman_lower90) == pytest.approx(np.arctanh(row.spearman) - half)
    full = score_interest(pd.DataFrame(dict(score=interest + np.arange(1000) * 1e-6)), interest, n=10).loc["score"]
    assert full.precision == full.precision_upper90 == full.rank_weighted == 1 and full.precision_lower90 < 1


@pytest.mark.parametrize("interest, threshold, message", [
    ([0, .5, np.nan], .5, "No fraction in 0 to 1 for 1 subject .*row 2"),
    ([0, .5, 62.5], .5, "row 2, 62.5"),
    ([0, .1, .2], .5, "None of 3 subjects reach the threshold 0.5.*to 0.2"),
    ([.6, .7, .8], .5, "All of 3 subjects"),
])
def test_interest_that_cannot_be_ranked(interest, threshold, message):
    scores = pd.DataFrame(dict(s=[1., 2., 3.]))
    with pytest.raises(InputError, match=message): score_interest(scores, interest, threshold)


def test_weight_curve_ends_at_the_two_scores(project, votes):
    table = join_scores(shrink(votes), read_scores(project[0] / "all_ww_data.csv"))
    curve = weight_curve(table.image_score, table.feature_score, table.posterior, .3)
    alone = score_interest(table[["image_score", "feature_score"]], table.posterior, .3)
    np.testing.assert_allclose(curve.roc_auc[[0., 1.]], alone.roc_auc)
    assert curve.precision[1.] > curve.precision[.2]
    plot_scores(table).savefig(io.BytesIO())
    roc, head = plot_ranking(table[["anomaly_score", "image_score"]], table.posterior, .3).axes
    assert head.get_lines()[-1].get_ydata()[0] == pytest.approx((table.posterior >= .3).mean())  # the base rate
    assert f"AUC {alone.roc_auc['image_score']:.2f}" in roc.get_lines()[1].get_label()


def test_a_ranking_of_equal_scores_is_drawn_as_chance():
    roc, head = plot_ranking(pd.DataFrame(dict(flat=np.ones(100))), np.repeat([1., 0.], [20, 80])).axes
    x, y = roc.get_lines()[0].get_data()
    np.testing.assert_allclose(x, y)
    np.testing.assert_allclose(head.get_lines()[0].get_ydata(), .2)


# --- sets and maps

def test_percentile_sets():
    table = pd.DataFrame(dict(id_str=np.arange(1000).astype(str)))
    table["anomaly_score"] = np.random.default_rng(0).permutation(1000)
    sets = percentile_sets(table, edges=(0, 1, 50, 99, 100), size=6, seed=1)
    assert sets.band.value_counts().to_dict() == {band: 6 for band in ("0 to 1", "1 to 50", "50 to 99", "99 to 100")}
    np.testing.assert_allclose(sets.percentile, (sets.anomaly_score + .5) / 10)
    ends = sets.groupby("band", observed=True).anomaly_score.agg(["min", "max"])
    assert ends.loc["99 to 100", "min"] >= 990 and ends.loc["0 to 1", "max"] < 10
    pd.testing.assert_frame_equal(sets, percentile_sets(table, edges=(0, 1, 50, 99, 100), size=6, seed=1))
    assert set(sets.id_str) != set(percentile_sets(table, edges=(0, 1, 50, 99, 100), size=6, seed=2).id_str)
    with pytest.raises(InputError, match="percentiles rise"): percentile_sets(table, edges=(0, 50, 50))
    with pytest.raises(InputError, match="percentiles rise"): percentile_sets(table, edges=(0, 150))
    with pytest.raises(InputError, match="with one anomaly_score for all"):
        percentile_sets(table.assign(anomaly_score=1.))
    with pytest.raises(InputError, match="No anomaly_score for 1 subject"):
        percentile_sets(table.assign(anomaly_score=[np.nan, *range(999)]))
    with pytest.raises(InputError, match="no column 'anomalyscore': did you mean 'anomaly_score'"):
        percentile_sets(table, "anomalyscore")


def test_latents(project, tmp_path):
    root, truth = project
    latents = read_latents(root / "latents.npy", rows=3000)
    assert latents.shape == (3000, 128) and pca_map(latents).shape == (3000, 2)
    with pytest.raises(InputError, match="3,000 rows for 12 subjects"): read_latents(root / "latents.npy", rows=12)
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match="no plain .npy array"): read_latents(tmp_path / "o.npy")
    np.savez(tmp_path / "z.npz", a=latents[:9])
    with pytest.raises(InputError, match="several arrays"): read_latents(tmp_path / "z.npz")
    (tmp_path / "cut.npy").write_bytes((root / "latents.npy").read_bytes()[:5000])
    with pytest.raises(InputError, match="no plain .npy array"): read_latents(tmp_path / "cut.npy")
    with pytest.raises(InputError, match="There is no file"): read_latents(tmp_path / "none.npy")
    latents[7, 3] = np.nan
    with pytest.raises(InputError, match="not finite in 1 row of the latents, the first is row 7"): pca_map(latents)
    with pytest.raises(InputError, match=r"shape \(3, 2\)"): pca_map(np.zeros((3, 2)))
    with pytest.raises(InputError, match="Latents are numbers"): pca_map([["a", "b"]])
    with pytest.raises(InputError, match="expected \\(4, 2\\)"): plot_map(np.zeros((3, 2)), [1, 2, 3, 4])


def test_umap_absent_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    latents = np.random.default_rng(0).normal(size=(30, 5))
    with pytest.raises(InputError, match=r"pip install 'gz_nbdev\[umap\]'"): umap_map(latents)
    with pytest.raises(InputError, match="between 2 and 29"): umap_map(latents, neighbours=30)


@pytest.mark.skipif("slow" not in os.environ.get("GZ_FLAGS", ""), reason="umap compiles for long: set GZ_FLAGS=slow")
def test_umap_keeps_two_groups_apart():
    pytest.importorskip("umap")
    x = np.random.default_rng(0).normal(size=(60, 8)) + 30 * (np.arange(60) < 30)[:, None]
    places = umap_map(x, neighbours=8)
    apart = np.linalg.norm(places[:30].mean(0) - places[30:].mean(0))
    assert places.shape == (60, 2) and apart > 2 * max(places[:30].std(0).max(), places[30:].std(0).max())


# --- the simulated project, and the real one

def test_simulated_project_is_one_for_a_seed(tmp_path):
    a, b, c = (simulate_project(tmp_path / name, 200, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    pd.testing.assert_frame_equal(a, b)
    assert not a.equals(c)
    for path in (tmp_path / "a").iterdir(): assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert (tmp_path / "a" / TABLE).read_text().startswith("subject_id count selected_count unique_user_count\n")
    with pytest.raises(InputError, match="too few for a project"): simulate_project(tmp_path, 5)


def test_simulated_without_repeats_recovers_the_truth(tmp_path):
    simulate_project(tmp_path, 20_000, a=.6, b=5.5, repeats=0)
    votes = read_consensus(tmp_path / TABLE)
    fit = fit_beta_binomial(votes.selected, votes.viewed)
    assert (votes.viewed == votes.users).all() and abs(fit.a - .6) < .03 and abs(fit.b - 5.5) < .3


@pytest.fixture(scope="module")
def ww():
    root = Path(os.environ["GZ_DATA"]) / "weird_and_wonderful"
    return root, read_consensus(root / TABLE)


@real
def test_real_counts_and_fits(ww):
    votes = ww[1]
    assert [len(votes), votes.viewed.sum(), votes.selected.sum()] == [207_589, 4_055_680, 387_518]
    assert (votes.selected / votes.viewed >= .5).mean() == pytest.approx(.0266, abs=5e-5)
    assert (votes.viewed > votes.users).mean() == pytest.approx(.943, abs=5e-4)
    for method, expected in (("moments", (.472, 4.65)), ("likelihood", (.572, 5.53))):
        fit = fit_beta_binomial(votes.selected, votes.viewed, method)
        np.testing.assert_allclose([fit.a, fit.b], expected, rtol=.02)
    assert shrink(votes).posterior.between(0, 1).all()


@real
def test_real_tags(ww):
    root, votes = ww
    interest, tags = shrink(votes), read_tags(root / "project-14993-tags_2023-08-02.json")
    for pattern, expected in (("^merger$", .959), ("ring", .942), ("lens", .864)):
        label = interest.id_str.isin(tags.id_str[tags.tag.str.contains(pattern)])
        assert abs(auc_interval(label, interest.fraction)[0] - expected) < .005
    crowd = tag_interest(interest, tagged_subjects(tags))
    assert crowd.auc_among_tagged["merger"] > .65 > .5 > crowd.auc_among_tagged["lens"]


@real
def test_real_scores(ww):
    root = ww[0]
    ratings = read_scores(root / "ww_scores_and_ratings.csv")
    assert len(ratings) == 699 and ratings.expert_fraction.isna().sum() == 17 and ratings.expert_fraction.max() <= 1
    row = score_interest(ratings[["anomaly_score"]], ratings.volunteer_rating, n=20).loc["anomaly_score"]
    assert abs(row.spearman - .376) < .02 and row.roc_auc > .8 and row.hits == 0
    sample = read_scores(root / "all_ww_data_sample.csv")
    score = weighted_score(sample.image_score, sample.feature_score)
    np.testing.assert_allclose(score, sample.anomaly_score, atol=1e-4)


def test_text_among_the_scores_is_named():
    scores = pd.DataFrame(dict(picture=["a", "b", "c"], odd=[.1, .2, .3]))
    with pytest.raises(InputError, match="column 'picture' holds 'a' and so on, which are no scores"): score_interest(scores, [0., .6, 0.])
