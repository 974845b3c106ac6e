"Scores of votes, calibration and rankings, held against SciPy and against simulations whose truth is known"
import warnings
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, betabinom, binom, dirichlet_multinomial, kstest
from sklearn.metrics import roc_auc_score

from gz_nbdev.catalog import read_kaggle
from gz_nbdev.metrics import (bootstrap, calibration_error, compare_predictors, confident_accuracy, constant_concentrations,
                              count_ranks, coverage, draw_counts, fraction_calibration, fraction_ranks, kaggle_fractions,
                              kaggle_rmse, mixture_nll, plot_coverage, plot_reliability, rank_weighted_score, ranking_metrics,
                              vote_differences, vote_errors, votes_score, with_intervals)
from gz_nbdev.schema import InputError, Schema, get_schema
from gz_nbdev.simulate import draw_galaxies, draw_votes, vote_model

THREE = Schema.from_text("shape: smooth, featured, artifact", "three")
TREE = Schema.from_text("shape: smooth, featured, artifact\nbar: yes, no <- shape_featured", "tree")


@pytest.fixture(scope="module")
def known():
    "3,000 galaxies, one question, two members whose mixture is the truth: concentrations (2, N, 3), p, votes of 0 to 60 people"
    rng = np.random.default_rng(0)
    a = 10 ** rng.uniform(-.7, 1.5, (2, 3000, 3))
    chosen = a[rng.integers(0, 2, 3000), np.arange(3000)]
    p = np.stack([rng.dirichlet(x) for x in chosen])
    votes = np.stack([rng.multinomial(n, x) for n, x in zip(rng.integers(0, 61, 3000), p)])
    return a, p, votes


@pytest.fixture(scope="module")
def survey():
    "The simulated votes of 1,500 galaxies: tree, oracle, p, votes"
    tree = get_schema("dr5")
    means, agreement = vote_model(draw_galaxies(1500, seed=3), tree)
    p, votes = draw_votes(means, agreement, tree, seed=3)
    return tree, agreement[:, None] * means, p, votes


# Ranks

def test_fraction_ranks_are_scipys(known):
    a, p, _ = known
    ranks = fraction_ranks(a, p, THREE)
    judge = np.mean([beta(x, x.sum(1, keepdims=True) - x).cdf(p) for x in a], 0)
    inside = (p > 1e-8) & (p < 1 - 1e-8)
    np.testing.assert_allclose(ranks[inside], judge[inside], rtol=1e-10)
    assert inside.mean() > .99


def test_count_ranks_are_scipys():
    "Over the whole range of concentrations and counts, members mixed"
    rng = np.random.default_rng(1)
    a, n = 10 ** rng.uniform(-2, 3, (2, 500, 3)), rng.choice([0, 1, 3, 40, 1000], 500)
    k = np.stack([rng.multinomial(x, rng.dirichlet([.3] * 3)) for x in n])
    ranks, rest = count_ranks(a, k, THREE, seed=5), a.sum(-1, keepdims=True) - a
    below, up_to = (np.mean([betabinom.cdf(x, n[:, None], *pair) for pair in zip(a, rest)], 0) for x in (k - 1, k))
    asked = n > 0
    assert np.isnan(ranks[~asked]).all() and (~asked).any()
    assert (ranks[asked] >= below[asked] - 1e-9).all() and (ranks[asked] <= up_to[asked] + 1e-9).all()
    wide = asked[:, None] & (up_to - below > 1e-3)
    assert wide.sum() > 100 and kstest((ranks[wide] - below[wide]) / (up_to[wide] - below[wide]), "uniform").pvalue > .01


def test_count_ranks_are_drawn_by_seed(known):
    a, _, votes = known
    np.testing.assert_array_equal(count_ranks(a, votes, THREE, seed=1), count_ranks(a, votes, THREE, seed=1))
    assert (count_ranks(a, votes, THREE, seed=1) != count_ranks(a, votes, THREE, seed=2)).any()


@pytest.mark.parametrize("answer", range(3))
def test_perfect_concentrations_have_uniform_ranks(known, answer):
    a, p, votes = known
    asked = votes.sum(1) > 0
    assert kstest(fraction_ranks(a, p, THREE)[:, answer], "uniform").pvalue > .01
    assert kstest(count_ranks(a, votes, THREE)[asked, answer], "uniform").pvalue > .01
    assert kstest(fraction_ranks(4 * a, p, THREE)[:, answer], "uniform").pvalue < 1e-6
    assert kstest(fraction_ranks(a[:, ::-1], p, THREE)[:, answer], "uniform").pvalue < 1e-6


def test_fractions_too_small_to_tell_from_zero_keep_ranks_uniform():
    "Concentrations far below 1 put most of the distribution under any number that can be stored"
    rng = np.random.default_rng(0)
    a = np.tile([.01, 5.], (4000, 1))
    p = np.stack([rng.beta(.01, 5, 4000), np.zeros(4000)], 1)
    p[:, 1] = 1 - p[:, 0]
    assert (p[:, 0] < 1e-8).mean() > .7
    ranks = fraction_ranks(a, p, get_schema("rings"))
    assert all(kstest(ranks[:, i], "uniform").pvalue > .01 for i in range(2))


# Coverage

@pytest.mark.parametrize("level", [.5, .9])
def test_coverage_of_perfect_concentrations_within_sampling_error(known, level):
    a, p, votes = known
    asked = votes.sum(1, keepdims=True)
    galaxies = (asked >= 5).sum()
    low, high = binom(galaxies, level).ppf([.001, .999]) / galaxies
    for ranks in (fraction_ranks(a, p, THREE), count_ranks(a, votes, THREE)):
        table = coverage(ranks, asked, THREE, level)
        assert low < table.loc["all", "coverage"] < high
        assert table.loc["all", "coverage_lower90"] < table.loc["all", "coverage"] < table.loc["all", "coverage_upper90"]
        assert table.galaxies.tolist() == [galaxies] * 2


def test_overconfidence_is_seen(known):
    a, p, votes = known
    asked = votes.sum(1, keepdims=True)
    assert coverage(fraction_ranks(4 * a, p, THREE), asked, THREE).loc["all", "coverage_upper90"] < .75
    assert coverage(count_ranks(4 * a, votes, THREE), asked, THREE).loc["all", "coverage_upper90"] < .88
    assert coverage(fraction_ranks(a / 4, p, THREE), asked, THREE).loc["all", "coverage_lower90"] > .93


def test_which_fraction_is_meant():
    "A = 10, twenty volunteers: 90% of p, 99.7% of m, about 71% of k/n"
    rng = np.random.default_rng(0)
    m = rng.dirichlet([1, 1, 1], 20_000)
    p = np.stack([rng.dirichlet(10 * x) for x in m])
    share = rng.binomial(20, p) / 20
    ranks = [fraction_ranks(10 * m, x, THREE) for x in (p, m, share)]
    held = [coverage(rank, np.full((20_000, 1), 20), THREE, draws=20).loc["all", "coverage"] for rank in ranks]
    assert held[0] == pytest.approx(.9, abs=.005) and held[1] == pytest.approx(.997, abs=.002) and .68 < held[2] < .74


def test_coverage_intervals_hold_nine_in_ten():
    "Of 200 surveys of 150 galaxies"
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        ranks = rng.uniform(size=(150, 1))
        table = coverage(np.concatenate([ranks, 1 - ranks], 1), np.full((150, 1), 20), get_schema("rings"), .5, draws=200, seed=seed)
        held += table.loc["all", "coverage_lower90"] <= .5 <= table.loc["all", "coverage_upper90"]
    assert 165 <= held <= 192


def test_every_question_of_the_survey_is_covered(survey):
    tree, oracle, p, votes = survey
    table = coverage(fraction_ranks(oracle, p, tree), tree.totals(votes), tree)
    assert table.index.tolist() == [q.name for q in tree.questions] + ["all"]
    assert table.coverage.between(.86, .94).all() and table.loc["all", "coverage"] == pytest.approx(.9, abs=.01)


def test_few_galaxies_are_said():
    "A question nobody got to is an empty row; four galaxies have a value and no interval"
    ranks = np.full((10, 5), .5)
    asked = np.array([[20, 0]] * 6 + [[20, 9]] * 4)
    table = coverage(ranks, asked, TREE)
    assert table.loc["bar", "galaxies"] == 4 and table.loc["bar", "coverage"] == 1 and np.isnan(table.loc["bar", "coverage_lower90"])
    assert with_intervals(table).coverage.tolist() == ["1.000 (1.000 to 1.000)", "1.000 (too few)", "1.000 (1.000 to 1.000)"]
    nobody = coverage(ranks, asked * [1, 0], TREE).loc["bar"]
    assert nobody.galaxies == 0 and np.isnan(nobody.coverage)


# Likelihood

def test_mixture_nll_averages_likelihoods(known):
    a, _, votes = known
    judge = -np.log(np.mean([dirichlet_multinomial.pmf(votes[:300], x[:300], votes[:300].sum(1)) for x in a], 0))
    np.testing.assert_allclose(mixture_nll(a[:, :300], votes[:300], THREE)[:, 0], judge, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(mixture_nll(a[0, :300], votes[:300], THREE)[:, 0],
                               -dirichlet_multinomial.logpmf(votes[:300], a[0, :300], votes[:300].sum(1)), rtol=1e-8, atol=1e-10)


def test_same_member_twice_changes_nothing(survey):
    tree, oracle, p, votes = survey
    twice = np.stack([oracle, oracle])
    np.testing.assert_allclose(mixture_nll(twice, votes, tree), mixture_nll(oracle, votes, tree), atol=1e-9)
    np.testing.assert_allclose(fraction_ranks(twice, p, tree), fraction_ranks(oracle, p, tree), atol=1e-12)


def test_unasked_costs_nothing(survey):
    tree, oracle, _, votes = survey
    nll, asked = mixture_nll(oracle, votes, tree), tree.totals(votes)
    assert (nll[asked == 0] == 0).all() and (nll[asked > 0] > 0).all()
    assert mixture_nll(oracle, np.where(votes == 0, np.nan, votes), tree) == pytest.approx(nll)


def test_constant_is_the_maximum_of_likelihood():
    truth = np.array([4., 11., 1., .3, 2.])
    votes = draw_counts(np.tile(truth, (20_000, 1)), np.full((20_000, 2), [40, 12]), TREE, seed=1)
    found = constant_concentrations(votes, TREE)
    assert found == pytest.approx(truth, rel=.05)
    best = mixture_nll(found, votes, TREE).sum(0)
    for i in range(5):
        for factor in (.97, 1.03):
            near = found * np.where(np.arange(5) == i, factor, 1)
            assert mixture_nll(near, votes, TREE).sum(0)[int(i > 2)] > best[int(i > 2)]


def test_constant_at_the_edges():
    "An answer nobody gave, a question nobody was asked, everybody of one mind"
    found = constant_concentrations([[3, 7, 0, 0, 0], [5, 5, 0, 0, 0], [9, 1, 0, 0, 0]], TREE)
    assert np.isfinite(found).all() and found[2] < .01 and found[3:].tolist() == [1, 1]
    same = constant_concentrations([[30, 10, 0]] * 50, THREE)
    assert np.isfinite(same).all() and same[0] / same.sum() == pytest.approx(.75, abs=.01)


def test_draw_counts_follow_the_mixture(known):
    a, _, _ = known
    asked = np.full((20_000, 1), 12)
    counts = draw_counts(np.repeat(a[:, :1], 20_000, 1), asked, THREE, seed=2)
    assert (counts.sum(1) == 12).all()
    for answer in range(3):
        pmf = np.mean([betabinom(12, x[answer], x.sum() - x[answer]).pmf(range(13)) for x in a[:, 0]], 0)
        assert np.bincount(counts[:, answer], minlength=13) / 20_000 == pytest.approx(pmf, abs=.015)
    tiny = draw_counts(np.full((2000, 3), 1e-3), np.full((2000, 1), 9), THREE)
    assert (tiny.max(1) == 9).mean() > .97 and (tiny.mean(0) / 9) == pytest.approx(1 / 3, abs=.05)


# Calibration of the fractions

def test_perfect_prediction_is_at_the_floor_and_hedging_is_not(survey):
    tree, oracle, _, votes = survey
    perfect = fraction_calibration(oracle, votes, tree).loc["all"]
    assert perfect.ece < perfect.ece_if_perfect_upper95 * 1.1 and perfect.ece > .5 * perfect.ece_if_perfect
    total = oracle[:, :3].sum(1, keepdims=True)
    hedged = fraction_calibration(oracle + total * (oracle / total).mean(0), votes, tree).loc["all"]
    assert hedged.ece > 5 * hedged.ece_if_perfect_upper95


def test_calibration_error_by_hand():
    "Two galaxies expected .2 and .8, seen 0 of 10 and 30 of 40: (10 x .2 + 40 x .05) / 50"
    table = fraction_calibration([[2., 8.], [8., 2.]], [[0, 10], [30, 10]], get_schema("rings"), bins=2)
    assert table.loc["ring", "ece"] == pytest.approx(.08) and table.loc["all", "ece"] == pytest.approx(.08)


def test_a_constant_guess_is_one_bin(survey):
    "It cannot be cut into bins by the order of the galaxies"
    tree, _, _, votes = survey
    pooled = votes.sum(0) + 1e-9
    assert fraction_calibration(pooled, votes, tree, draws=2).loc["all", "ece"] == pytest.approx(0, abs=1e-6)


# The table

def test_score_agrees_with_its_parts(survey):
    tree, oracle, p, votes = survey
    score = votes_score(oracle, votes, tree, p)
    nll, asked = mixture_nll(oracle, votes, tree), tree.totals(votes)
    assert score.loc["all", "nll"] == pytest.approx(nll.sum(1).mean())
    name, i = "bar-dr5", 3
    seen = asked[:, i] > 0
    assert score.loc[name, "galaxies"] == seen.sum()
    assert score.loc[name, "nll"] == pytest.approx(nll[seen, i].mean())
    fractions = oracle / oracle[:, :3].sum(1, keepdims=True)
    off = abs(fractions - tree.fractions(votes))[seen, tree.question(name).slice].mean(1)
    assert score.loc[name, "deviation"] == pytest.approx(np.average(off, weights=asked[seen, i]))
    sure = confident_accuracy(fractions, tree.fractions(votes), asked, tree)
    assert score.accuracy[sure.index].tolist() == pytest.approx(sure.accuracy.tolist())
    inside = coverage(fraction_ranks(oracle, p, tree), asked, tree, min_asked=1)
    assert score.covered_fractions.tolist() == pytest.approx(inside.coverage.tolist())
    assert "covered_fractions" not in votes_score(oracle, votes, tree, draws=5)


def test_intervals_are_those_of_the_slow_bootstrap(survey):
    tree, oracle, _, votes = survey
    nll = mixture_nll(oracle, votes, tree).sum(1)
    value, lower, upper = bootstrap(np.mean, nll, draws=2000)
    score = votes_score(oracle, votes, tree, draws=2000).loc["all"]
    assert score.nll == pytest.approx(value)
    assert (score.nll_upper90 - score.nll_lower90) == pytest.approx(upper - lower, rel=.08)


def test_predictors_are_ordered(survey):
    "constant < overconfident < oracle, and the oracle's gain is sure"
    tree, oracle, p, votes = survey
    half = np.arange(len(votes)) < 750
    predictors = {"constant": constant_concentrations(votes[half], tree), "sure": 4 * oracle[~half], "oracle": oracle[~half]}
    table = compare_predictors(predictors, votes[~half], tree, p[~half])
    assert table.index.names == ["question", "predictor"] and len(table) == 33
    every = table.loc["all"]
    assert every.gain["constant"] == 0 < every.gain_lower90["sure"] and every.gain_upper90["sure"] < every.gain_lower90["oracle"]
    assert every.deviation["sure"] == pytest.approx(every.deviation["oracle"]) and every.deviation["constant"] > every.deviation["oracle"]
    assert every.covered_fractions["sure"] < .7 and every.covered_fractions["constant"] == pytest.approx(.9, abs=.03)
    paired, single = every.gain_upper90 - every.gain_lower90, every.nll_upper90 - every.nll_lower90
    assert paired["oracle"] < .7 * single["oracle"]
    np.testing.assert_allclose(every.gain, every.nll["constant"] - every.nll)


def test_with_intervals_reads_well():
    table = pd.DataFrame({"n": [3, 2, 0], "x": [.5, .25, np.nan], "x_lower90": [.4, np.nan, np.nan], "x_upper90": [.6, np.nan, np.nan]})
    shown = with_intervals(table, 2)
    assert shown.columns.tolist() == ["n", "x"] and shown.x.tolist() == ["0.50 (0.40 to 0.60)", "0.25 (too few)", ""]


# Plots

def test_plots_show_the_questions_that_were_asked(survey):
    tree, oracle, p, votes = survey
    asked, ranks = tree.totals(votes), fraction_ranks(oracle, p, tree)
    none = np.where(np.arange(34) == np.arange(34)[tree.question("merging-dr5").slice, None], 0, votes[:, None]).min(1)
    fig = plot_reliability(oracle, none, tree, draws=10)
    assert [ax.get_title(loc="left").split("\n")[0] for ax in fig.axes] == [q.text for q in tree.questions[:-1]]
    fig = plot_coverage({"oracle": ranks}, asked, tree, ["bar-dr5"], draws=10)
    assert [ax.get_title(loc="left") for ax in fig.axes] == [f"bar\n{(asked[:, 3] >= 5).sum():,} galaxies"]
    x, y = fig.axes[0].lines[1].get_data()
    assert abs(x - y).max() < .05 and (x[0], x[-1], y[-1]) == (0, 1, 1)
    with pytest.raises(InputError, match="did you mean 'bar-dr5'"): plot_coverage({"oracle": ranks}, asked, tree, ["bar-dr"])
    with pytest.raises(InputError, match="nothing to plot"): plot_reliability(oracle, none, tree, ["merging-dr5"])
    with pytest.raises(InputError, match="no ranks to plot"): plot_coverage({}, asked, tree)


# Kaggle

def test_kaggle_and_back(tmp_path):
    schema = get_schema("hart16")
    rng = np.random.default_rng(0)
    fractions = np.concatenate([rng.dirichlet(np.ones(len(q.answers)), 30) for q in schema.questions], 1)
    table = kaggle_fractions(fractions, schema)
    assert table.columns.tolist() == [f"Class{q}.{a}" for q, n in enumerate([3, 2, 2, 2, 4, 2, 3, 7, 3, 3, 6], 1) for a in range(1, n + 1)]
    table.assign(GalaxyID=range(100008, 100038)).to_csv(tmp_path / "training_solutions_rev1.csv", index=False)
    back = read_kaggle(tmp_path / "training_solutions_rev1.csv")
    np.testing.assert_allclose(back[[f"{c}_fraction" for c in schema.columns]], fractions, rtol=1e-6)


def test_kaggle_sums_as_the_challenge_defines_them():
    "The sums over the answers to each question, from the rules of the challenge"
    schema = get_schema("hart16")
    rng = np.random.default_rng(1)
    t = kaggle_fractions(np.concatenate([rng.dirichlet(np.ones(len(q.answers)), 9) for q in schema.questions], 1), schema)
    reached = {1: 1, 2: t["Class1.2"], 3: t["Class2.2"], 4: t["Class2.2"], 5: t["Class2.2"], 6: 1, 7: t["Class1.1"],
               8: t["Class6.1"], 9: t["Class2.1"], 10: t["Class4.1"], 11: t["Class4.1"]}
    for task, share in reached.items():
        np.testing.assert_allclose(t.filter(regex=rf"^Class{task}\.").sum(axis=1), share + np.zeros(9), rtol=1e-9)


def test_kaggle_answers_are_the_challenges():
    "Names of Class5 run from no bulge to dominant, of Class1 as ours"
    schema = get_schema("hart16")
    for column, place in {"bulge-size-gz2_no": "Class5.1", "bulge-size-gz2_dominant": "Class5.4", "has-spiral-arms-gz2_yes": "Class4.1",
                          "bar-gz2_yes": "Class3.1", "odd-feature-gz2_ring": "Class8.1", "odd-feature-gz2_dust-lane": "Class8.7",
                          "spiral-arm-count-gz2_cant-tell": "Class11.6", "how-rounded-gz2_cigar": "Class7.3"}.items():
        fractions = np.full((1, 37), .5)
        fractions[0, schema.columns.index(column)] = .25
        changed = (kaggle_fractions(fractions, schema) != kaggle_fractions(np.full((1, 37), .5), schema)).loc[0]
        assert changed.idxmax() == place


def test_kaggle_unreached_is_zero_and_rmse_is_the_root_mean_square():
    schema = get_schema("hart16")
    fractions = np.zeros((2, 37))
    fractions[:, 0] = 1
    fractions[:, [schema.columns.index("something-odd-gz2_no"), schema.columns.index("how-rounded-gz2_round")]] = 1
    fractions[:, schema.question("disk-edge-on-gz2").slice] = np.nan
    table = kaggle_fractions(fractions, schema)
    assert table.loc[0, ["Class1.1", "Class6.2", "Class7.1"]].tolist() == [1, 1, 1] and table.loc[0].sum() == 3
    assert kaggle_rmse(np.zeros((4, 37)), np.full((4, 37), .1)) == pytest.approx((.1, .1, .1))
    mixed = np.zeros((4, 37))
    mixed[0, 0] = 1
    assert kaggle_rmse(mixed, np.zeros((4, 37)))[0] == pytest.approx((1 / (4 * 37)) ** .5)


def test_kaggle_refuses():
    with pytest.raises(InputError, match="schema 'hart16': 'dr5' is another"): kaggle_fractions(np.ones((2, 34)), get_schema("dr5"))
    with pytest.raises(InputError, match=r"shape \(2, 36\)"): kaggle_rmse(np.ones((2, 36)), np.ones((2, 37)))
    with pytest.raises(InputError, match="lacks 36 of the 37 columns of the challenge: Class1.2"): kaggle_rmse(np.ones((2, 37)), pd.DataFrame({"Class1.1": [1, 2]}))
    with pytest.raises(InputError, match="not finite, the first in row 1"):
        kaggle_rmse(np.ones((2, 37)), np.where(np.arange(2)[:, None], np.nan, np.ones((2, 37))))


# Bad input

GOOD = np.full((4, 3), 2.)
VOTES = np.array([[3, 4, 1]] * 4)


@pytest.mark.parametrize("concentrations, votes, message", [
    (np.ones((4, 2)), VOTES, r"shape \(4, 2\): expected \(members, 4, 3\)"),
    (np.ones((5, 3)), VOTES, r"shape \(5, 3\): expected \(members, 4, 3\)"),
    (np.ones((0, 4, 3)), VOTES, r"shape \(0, 4, 3\)"),
    (np.ones((1, 1, 4, 3)), VOTES, r"shape \(1, 1, 4, 3\)"),
    (GOOD * [[1], [np.nan], [1], [1]], VOTES, "3 of 12; the first: galaxy 1, shape_smooth"),
    (GOOD * [1, 1, np.inf], VOTES, "finite and above 0"),
    (GOOD * [1, -1, 1], VOTES, "to_concentrations"),
    (GOOD * [1, 0, 1], VOTES, "above 0"),
    ([[1, 2, 3], [1, 2]], VOTES, "concentrations: expected numbers"),
    (GOOD, VOTES[:, :2], r"votes of shape \(4, 2\): expected \(galaxies, 3\)"),
    (GOOD, VOTES[0], r"votes of shape \(3,\)"),
    (GOOD, -VOTES, "whole numbers from 0 .*galaxy 0, shape_smooth"),
    (GOOD, VOTES / 8, "Schema.expected_votes"),
    (GOOD, VOTES * np.inf, "whole numbers"),
    (GOOD, [["many", "few", "none"]] * 4, "votes: expected numbers"),
    (GOOD, VOTES * 0, "nobody answered anything about these 4 galaxies"),
    (GOOD, VOTES * np.nan, "nobody answered anything"),
])
def test_bad_concentrations_and_votes(concentrations, votes, message):
    for function in (mixture_nll, count_ranks, votes_score, fraction_calibration, plot_reliability):
        with pytest.raises(InputError, match=message): function(concentrations, votes, THREE)
    with pytest.raises(InputError, match=message): compare_predictors({"ours": concentrations}, votes, THREE)


@pytest.mark.parametrize("true, message", [
    (VOTES, "are these votes"), (-VOTES / 10, r"lie in 0..1 .12 of 12; the first: galaxy 0, shape_smooth"),
    (np.ones((4, 2)), r"true fractions of shape \(4, 2\)"), (np.ones((5, 3)), "true fractions of shape|concentrations of shape"),
    ("half", "true fractions: expected numbers"),
])
def test_bad_true_fractions(true, message):
    with pytest.raises(InputError, match=message): fraction_ranks(GOOD, true, THREE)
    with pytest.raises(InputError, match=message): votes_score(GOOD, VOTES, THREE, true)


@pytest.mark.parametrize("ranks, asked, message", [
    (np.ones((4, 2)), np.ones((4, 1)), r"ranks of shape \(4, 2\)"), (np.ones((4, 3)), np.ones((4, 2)), r"asked \(4, 2\)"),
    (np.ones((4, 3)), np.ones((3, 1)), r"asked \(3, 1\)"), (np.ones((4, 3)), np.full((4, 1), 4), "nothing to compare"),
    (np.full((4, 3), np.nan), np.full((4, 1), 40), "nothing to compare"),
])
def test_bad_ranks(ranks, asked, message):
    with pytest.raises(InputError, match=message): coverage(ranks, asked, THREE)
    with pytest.raises(InputError, match=message): plot_coverage({"ours": ranks}, asked, THREE)


def test_other_bad_input():
    with pytest.raises(InputError, match="no predictor to compare"): compare_predictors({}, VOTES, THREE)
    with pytest.raises(InputError, match="asked of shape"): draw_counts(GOOD, np.ones((4, 2)), THREE)
    with pytest.raises(InputError, match="asked of shape"): draw_counts(GOOD, -np.ones((4, 1)), THREE)
    with pytest.raises(InputError, match="nobody answered"): constant_concentrations(VOTES * 0, THREE)


def test_nothing_warns(survey):
    "Unasked questions and single galaxies included"
    tree, oracle, p, votes = survey
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = [compare_predictors({"one": oracle[:n], "two": oracle[:n] * 2}, votes[:n], tree, p[:n]) for n in (1, 6)]
        alone = votes_score(np.ones((3, 5)), [[9, 0, 1, 0, 0]] * 3, TREE)
    assert all(np.isfinite(table.loc["all", "nll"]).all() for table in tables) and alone.loc["all", "galaxies"] == 3


# What was here before: fractions, rankings, probabilities

def test_vote_errors_beside_a_constant():
    true, asked = np.array([[1., 0.], [0., 1.], [1., 0.]]), [[10], [10], [4]]
    predicted = np.array([[.8, .2], [.3, .7], [0., 1.]])
    table = vote_errors(predicted, true, asked, get_schema("rings"))
    assert table.loc["all"].tolist() == pytest.approx([2, .25, .5, .5])
    error, constant = vote_differences(predicted, true, asked, get_schema("rings"), reference=[.9, .1])
    assert np.isnan(error[2]).all() and constant[0] == pytest.approx([.1, .1])
    with pytest.raises(InputError, match="nothing to compare"): vote_errors(predicted, true, np.zeros((3, 1)), get_schema("rings"))


def test_rankings():
    label, score = np.array([1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0]), np.arange(12)[::-1]
    found = ranking_metrics(label, score, n=4)
    assert found["roc_auc"] == roc_auc_score(label, score) and found["precision"] == .75 and found["lift"] == 2.25
    assert rank_weighted_score(label, score, 4) == .7 and rank_weighted_score(label, -score, 4) == pytest.approx(.1)
    with pytest.raises(InputError, match="one is needed for each galaxy"): ranking_metrics(label, score[1:])
    with pytest.raises(InputError, match="not finite"): ranking_metrics([0, 1], [np.nan, 1])
    with pytest.raises(InputError, match="same label"): ranking_metrics([1, 1], [0, 1])


def test_tied_scores_count_as_the_mean_over_all_their_orders():
    "By brute force: every order in which equal scores can stand"
    label, score = np.array([1, 0, 0, 1, 1, 0, 0]), np.array([9, 5, 5, 5, 2, 2, 1])
    orders = [[0, *a, *b, 6] for a in permutations([1, 2, 3]) for b in permutations([4, 5])]
    rng = np.random.default_rng(0)
    for n in range(1, 8):
        lists, weights = [label[order][:n] for order in orders], np.arange(n, 0, -1)
        for rows in (np.arange(7), np.arange(7)[::-1], rng.permutation(7)):
            found = ranking_metrics(label[rows], score[rows], n)
            assert found["precision"] == pytest.approx(np.mean([x.mean() for x in lists]))
            assert found["recall"] == pytest.approx(np.mean([x.sum() for x in lists]) / 3)
            assert found["lift"] == pytest.approx(found["precision"] * 7 / 3)
            assert found["rank_weighted"] == pytest.approx(np.mean([x @ weights for x in lists]) / weights.sum())


def test_a_score_that_says_nothing_is_chance():
    found = ranking_metrics([1] * 50 + [0] * 50, np.ones(100))
    assert found["precision"] == found["recall"] == found["rank_weighted"] == found["roc_auc"] == .5 and found["lift"] == 1


def test_calibration_does_not_depend_on_the_order_of_equal_probabilities():
    label = np.arange(100) < 50
    assert calibration_error(label, np.full(100, .5)) == calibration_error(label[::-1], np.full(100, .5)) == 0
    assert calibration_error(label, np.full(100, .7)) == pytest.approx(.2)


def test_bootstrap():
    x = np.random.default_rng(1).normal(size=400)
    value, lower, upper = bootstrap(np.mean, x, draws=2000)
    assert value == x.mean() and upper - lower == pytest.approx(2 * 1.645 * x.std() / 20, rel=.06)
    assert bootstrap(np.mean, x, seed=3) == bootstrap(np.mean, x, seed=3)
    with pytest.raises(InputError, match="too few galaxies"): bootstrap(lambda x: np.nan, x)


def test_calibration_error():
    p = np.random.default_rng(0).uniform(size=20_000)
    happened = np.random.default_rng(1).uniform(size=20_000) < p
    assert calibration_error(happened, p) < .01 and calibration_error(happened, p ** .5) == pytest.approx(1 / 6, abs=.01)


@pytest.mark.parametrize("label, message", [([1, 0, np.nan, 0], "1 of 4 labels are blank, the first in row 2"), ([1, 0, .05, 0], "row 2 is 0.05: labels"),
                                            (["yes", "no", "no", "no"], "row 0 is 'yes'|row 0 is np.str_")])
def test_what_is_neither_true_nor_false_is_no_label(label, message):
    score = [.4, .3, .2, .1]
    for judge in (ranking_metrics, calibration_error, lambda label, score: rank_weighted_score(label, score, 2)):
        with pytest.raises(InputError, match=message): judge(label, score)
    assert ranking_metrics(["True", "False", "false", "0"], score)["positives"] == 1
