"The decision trees: what has to hold for every campaign, and what a wrong tree or table must meet."
import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gz_nbdev.schema import (CAMPAIGNS, PALETTE, TREES, Answer, InputError, Question, Schema, _layout, crosswalk,
                             get_schema, near_names, schema_names)

CARD = (Path(__file__).parent / "gz_desi_columns.txt").read_text().split()
GALAXY = [9, 30, 1, 3, 27, 24, 3, 10, 11, 6, 0, 3, 15, 9, 0, 2, 6, 1, 0, 1, 2, 3, 6, 15, 1, 19, 2, 0, 0, 2, 35, 3, 1, 0]


@pytest.fixture(params=schema_names())
def campaign(request): return get_schema(request.param)


def random_votes(schema, n=50, volunteers=40, seed=0):
    "Votes of people who really walk down the tree"
    rng, votes = np.random.default_rng(seed), np.zeros((n, len(schema.columns)))
    for i in range(n):
        for _ in range(volunteers):
            given = set()
            for question in schema.questions:  # parents stand before children in every campaign
                if not question.asked_after or given & set(question.asked_after):
                    answer = question.answers[rng.integers(len(question.answers))]
                    given.add(answer.column)
                    votes[i, answer.index] += 1
    return votes


# Every campaign

def test_slices_are_contiguous_and_cover_all_columns(campaign):
    assert [i for q in campaign.questions for i in range(*q.slice.indices(999))] == list(range(len(campaign.columns)))
    assert all(campaign.columns[q.slice] == q.columns for q in campaign.questions)
    assert campaign.index_groups == [q.slice for q in campaign.questions]


def test_columns_are_unique_and_named_by_question_and_answer(campaign):
    assert len(set(campaign.columns)) == len(campaign.columns)
    assert campaign.columns == [f"{a.question}_{a.text}" for a in campaign.answers]


def test_every_parent_exists_and_stands_before_its_children(campaign):
    for question in campaign.questions:
        assert len(campaign.parents(question.name)) == len(question.asked_after)
        for parent in campaign.parents(question.name):
            assert parent.index < question.slice.start
            assert question in campaign.children(parent.column)


def test_a_dict_gives_the_schema_back(campaign):
    assert Schema.from_dict(json.loads(json.dumps(campaign.to_dict()))) == campaign


def test_columns_give_the_schema_back(campaign):
    found = Schema.from_columns(["id_str", "ra", "dec", *reversed(campaign.columns), "petro_theta"])
    assert set(found.columns) == set(campaign.columns)
    assert found.name == campaign.name and found.questions == campaign.questions


def test_the_tree_predicts_who_was_asked(campaign):
    votes = random_votes(campaign, n=5)
    shares = campaign.fractions(votes)
    assert np.allclose(campaign.expected_votes(shares, campaign.totals(votes)), votes)
    per_campaign = campaign.totals(votes)[:, [not q.asked_after for q in campaign.questions]]
    assert np.allclose(campaign.proportion_asked(shares), campaign.totals(votes) / 40) and (per_campaign == 40).all()


def test_sums_of_fractions_are_one_or_unknown(campaign):
    shares = campaign.fractions(random_votes(campaign, n=5, volunteers=2))
    for question in campaign.questions:
        total = shares[:, question.slice].sum(-1)
        assert np.isnan(total).any() or np.allclose(total, 1)
        assert np.allclose(total[~np.isnan(total)], 1)


def test_cards_of_the_picture_do_not_overlap_and_lines_do_not_cross(campaign):
    cards, rows = _layout(campaign)
    for (left, top, height), (other_left, other_top, other_height) in itertools.combinations(cards.values(), 2):
        if left == other_left: assert top + height + 15 < other_top or other_top + other_height + 15 < top
    lines = [(*rows[a.column], cards[q][0], cards[q][1]) for q in campaign.questions for a in campaign.parents(q.name)]
    for (x, start, _, end), (other_x, other_start, _, other_end) in itertools.combinations(lines, 2):
        if x == other_x: assert (start - other_start) * (end - other_end) >= 0


# Names and trees of single campaigns

def test_gz_desi_has_the_98_columns_of_its_card_in_order():
    assert len(CARD) == 98 and get_schema("gz_desi").columns == CARD


@pytest.mark.parametrize("name, questions, columns", [
    ("dr12", 10, 30), ("dr5", 10, 34), ("dr8", 10, 34), ("desi", 10, 34), ("gz2", 10, 30), ("ukidss", 10, 30),
    ("hart16", 11, 37), ("hubble", 13, 40), ("candels", 12, 38), ("cosmic_dawn", 13, 45), ("jwst", 13, 45),
    ("euclid", 13, 46), ("rings", 1, 2), ("gz_desi", 30, 98)])
def test_sizes(name, questions, columns):
    assert (len(get_schema(name).questions), len(get_schema(name).columns)) == (questions, columns)


def test_merging_hangs_on_two_answers_and_arms_on_has_spiral_arms():
    assert get_schema("dr5").question("merging-dr5").asked_after == (
        "smooth-or-featured-dr5_smooth", "smooth-or-featured-dr5_featured-or-disk")
    for name, suffix in (("hubble", "hubble"), ("candels", "candels"), ("gz2", "gz2"), ("euclid", "euclid")):
        for question in (f"spiral-winding-{suffix}", f"spiral-arm-count-{suffix}"):
            assert get_schema(name).question(question).asked_after == (f"has-spiral-arms-{suffix}_yes",)
    for question in ("bar", "has-spiral-arms", "bulge-size"):
        assert get_schema("gz2").question(f"{question}-gz2").asked_after == ("disk-edge-on-gz2_no",)


def test_names_without_suffix():
    assert get_schema("desi").columns == [column.replace("-dr8", "") for column in get_schema("dr8").columns]
    assert get_schema("rings").columns == ["ring_yes", "ring_no"]
    assert get_schema("hart16").columns[:30] == get_schema("gz2").columns
    assert {tree for tree, _ in CAMPAIGNS.values()} == set(TREES)


def test_get_schema_takes_sums_and_schemas_and_offers_near_names():
    both = get_schema("gz2+rings")
    assert both.name == "gz2+rings" and both.columns == get_schema("gz2").columns + ["ring_yes", "ring_no"]
    assert get_schema(both) is both and get_schema("dr5") is get_schema("dr5")
    with pytest.raises(InputError, match="did you mean 'euclid'"): get_schema("euclyd")
    with pytest.raises(InputError, match="No schema is called 'nonsense': there are 'dr12'"): get_schema("nonsense")
    with pytest.raises(InputError): get_schema(None)


def test_crosswalk_pairs_equal_answers_only():
    table = crosswalk("dr12", "dr5")
    assert list(table.columns) == ["question", "answer", "column_a", "column_b"]
    assert (table.column_a.str.replace("-dr12", "") == table.column_b.str.replace("-dr5", "")).all()
    assert "bar-dr12_no" in set(table.column_a) and "bar-dr12_yes" not in set(table.column_a)
    assert len(crosswalk("dr5", "dr8")) == 34 and len(crosswalk("dr5", "rings")) == 0


# A wrong tree fails where it is made

def question(name, *texts, start=0, after=()):
    return Question(name, tuple(Answer(name, text, i) for i, text in enumerate(texts, start)), after)


@pytest.mark.parametrize("questions, message", [
    ([], "has no questions"),
    ([question("a", "x")], "has 1 answers"),
    ([question("a")], "has 0 answers"),
    ([question("a", "x", "x")], "'a_x' comes twice"),
    ([question("a", "x", "")], "both need a text"),
    ([question("a", "x", "y", start=1)], "has index 1, but 0 comes next"),
    ([question("a", "x", "y"), question("b", "x", "y", start=3)], "has index 3, but 2 comes next"),
    ([question("a", "x", "y"), question("b", "x", "y", start=1)], "has index 1, but 2 comes next"),
    ([question("a", "x", "y"), question("a", "p", "q", start=2)], "Question 'a' comes twice"),
    ([question("a_b", "c", "d"), question("a", "b_c", "x", start=2)], "'a_b_c' comes twice"),
    ([question("a", "x", "y", after=("z_x",))], "which is no answer"),
    ([question("a", "x", "y", after=("a_x",))], "in a circle: a <- a"),
    ([question("a", "x", "y", after=("b_x",)), question("b", "x", "y", start=2, after=("a_y",))], "circle: a <- b <- a"),
    ([Question("a", (Answer("b", "x", 0), Answer("a", "y", 1)))], "answer to another question"),
])
def test_wrong_trees(questions, message):
    with pytest.raises(InputError, match=message): Schema("wrong", questions)


@pytest.mark.parametrize("text, message", [
    ("", "Line 1|no questions"), ("bar yes, no", "has no ':'"), ("bar: yes", "at least two"),
    ("bar: yes, ", "both need a text"), ("bar: a, b\n bar: c, d", "comes twice"),
    ("bar: yes, no <- disc_no", "is asked after 'disc_no'")])
def test_wrong_texts(text, message):
    with pytest.raises(InputError, match=message): Schema.from_text(text, "wrong")


@pytest.mark.parametrize("d", [None, [], {}, {"name": "x"}, {"name": "x", "questions": 3},
                               {"name": "x", "questions": [{"name": "bar"}]},
                               {"name": "x", "questions": [{"name": "bar", "answers": "yes"}]},
                               {"name": "x", "questions": [{"name": "bar", "answers": [1, 2]}]}])
def test_wrong_dicts(d):
    with pytest.raises(InputError): Schema.from_dict(d)


def test_a_schema_cannot_be_changed():
    with pytest.raises(AttributeError): get_schema("dr5").name = "mine"
    with pytest.raises(InputError, match="comes twice"): get_schema("dr5") + get_schema("dr5")


# Votes

def test_probabilities_by_hand():
    dr5 = get_schema("dr5")
    shares = dr5.fractions(np.array(GALAXY))
    asked = dict(zip((q.text for q in dr5.questions), dr5.proportion_asked(shares)))
    assert asked["merging"] == pytest.approx(39 / 40) and asked["spiral-winding"] == pytest.approx(24 / 40)
    barred = ["bar-dr5_strong", "bar-dr5_weak", "spiral-winding-dr5_loose", "spiral-arm-count-dr5_2"]
    assert dr5.joint_probability(shares, barred) == pytest.approx(24 / 40 * 21 / 27 * 15 / 24 * 19 / 24)
    assert dr5.joint_probability(shares, "merging-dr5_none") == pytest.approx(39 / 40 * 35 / 39)
    smooth = ["smooth-or-featured-dr5_smooth", "merging-dr5_none"]
    assert dr5.joint_probability(shares, smooth) == pytest.approx(9 / 40 * 35 / 39)
    assert dr5.joint_probability(shares, ["how-rounded-dr5_round", "bar-dr5_no"]) == 0
    assert dr5.joint_probability(shares, []) == 1


def test_joint_probability_is_the_share_of_simulated_volunteers():
    schema = Schema.from_text("a: x, y\n b: x, y\n c: x, y <- a_x or b_x\n d: x, y <- c_x or a_y", "net")
    shares, rng = np.array([.3, .7, .6, .4, .2, .8, .5, .5]), np.random.default_rng(0)
    a, b, c, d = (rng.random((4, 400_000)).T < shares[::2]).T
    c_asked = a | b
    d_asked = (c_asked & c) | ~a
    assert schema.proportion_asked(shares)[2:] == pytest.approx([c_asked.mean(), d_asked.mean()], abs=.003)
    assert schema.joint_probability(shares, ["d_x", "b_y"]) == pytest.approx((d_asked & d & ~b).mean(), abs=.003)


def test_unknown_fractions_count_only_where_people_went():
    dr5 = get_schema("dr5")
    nobody, smooth = np.zeros(34), np.zeros(34)
    smooth[0] = 40
    shares = dr5.fractions(np.stack([nobody, smooth]))
    assert np.isnan(shares[0]).all() and np.isnan(shares[1, 3:]).all()
    assert np.isnan(dr5.proportion_asked(shares)[0, 1]) and dr5.proportion_asked(shares)[1, 1] == 0
    assert dr5.joint_probability(shares, "bar-dr5_no")[1] == 0
    assert (dr5.expected_votes(shares, dr5.totals(np.stack([nobody, smooth]))) == [nobody, smooth]).all()


def test_tables_keep_their_index_and_get_the_published_names():
    dr5 = get_schema("dr5")
    table = pd.DataFrame([GALAXY, GALAXY], columns=dr5.columns, index=["a", "b"])[dr5.columns[::-1]].assign(id_str="x")
    shares, totals = dr5.fractions(table), dr5.totals(table)
    assert list(shares.index) == ["a", "b"] and shares.columns[0] == "smooth-or-featured-dr5_smooth_fraction"
    assert totals.columns[7] == "spiral-winding-dr5_total-votes" and totals.iloc[0, 7] == 24
    assert dr5.proportion_asked(shares).columns[7] == "spiral-winding-dr5_proportion_volunteers_asked"
    assert dr5.joint_probability(shares, "bar-dr5_no").index.tolist() == ["a", "b"]
    assert dr5.expected_votes(shares, totals).columns.tolist() == dr5.columns
    assert dr5.fractions(table.iloc[0]).equals(shares.iloc[0])
    joined = pd.concat([table, shares, totals], axis=1)
    assert joined.columns.is_unique and dr5.expected_votes(joined, joined).equals(dr5.expected_votes(shares, totals))


def test_arrays_of_any_leading_shape_and_missing_votes():
    dr5 = get_schema("dr5")
    votes = np.zeros((2, 3, 34))
    votes[..., 0], votes[..., 3:] = 5, np.nan
    assert dr5.totals(votes).shape == (2, 3, 10) and (dr5.totals(votes)[..., 1:] == 0).all()
    assert dr5.fractions(votes).shape == (2, 3, 34) and dr5.totals(np.zeros((0, 34))).shape == (0, 10)
    assert dr5.proportion_asked(np.zeros((0, 34))).shape == (0, 10)
    nullable = pd.DataFrame([GALAXY], columns=dr5.columns).astype("Int64")
    nullable.loc[0, "bar-dr5_no"] = pd.NA
    assert dr5.totals(nullable)["bar-dr5_total-votes"].item() == 21


def test_wrong_votes():
    dr5, table = get_schema("dr5"), pd.DataFrame([GALAXY], columns=get_schema("dr5").columns)
    with pytest.raises(InputError, match="lacks 34 of the 34"): dr5.totals(pd.DataFrame({"id_str": ["x"]}))
    with pytest.raises(InputError, match="did you mean 'bar-dr5_yes'|'bar-dr5_no'"):
        dr5.totals(table.rename(columns={"bar-dr5_no": "bar-dr5_No"}))
    with pytest.raises(InputError, match="'bar-dr5_no' holds"): dr5.totals(table.assign(**{"bar-dr5_no": "six"}))
    with pytest.raises(InputError, match="34 numbers"): dr5.fractions(np.zeros((34, 3)))
    with pytest.raises(InputError, match="_fraction"): dr5.proportion_asked(table)
    with pytest.raises(InputError, match="has no answer"): dr5.joint_probability(np.zeros(34), ["bar-dr5_maybe"])


# Schema of a table

def test_mixtures_are_named_by_their_campaigns():
    assert Schema.from_columns(CARD) == get_schema("gz_desi")
    both = Schema.from_columns(get_schema("gz2").columns + get_schema("dr5").columns + ["ring_yes", "ring_no"])
    assert both.name == "dr5+gz2+rings" and get_schema(both.name) == both
    assert Schema.from_columns(get_schema("dr5").columns, name="mine").name == "mine"


def test_published_forms_without_suffix():
    counts = get_schema("desi").columns
    extra = [f"{column}{suffix}" for column in counts for suffix in ("_fraction", "_debiased")]
    assert Schema.from_columns(counts + extra + ["bar_total-votes", "iauname", "redshift"]).name == "desi"
    automatic = [f"{column}_fraction" for column in counts] + ["bar_proportion_volunteers_asked", "wrong_size_warning"]
    assert Schema.from_columns(automatic) == get_schema("desi")
    bare = Schema.from_columns([column.replace("-dr12", "") for column in get_schema("dr12").columns])
    assert bare.question("spiral-winding").asked_after == ("has-spiral-arms_yes",)


@pytest.mark.parametrize("columns, name, missing", [
    (["bar-dr5_no"], "dr5", "33 of its 34"), (CARD[:-1], "dr8", "merging-dr8_merger"),
    (get_schema("gz2").columns + ["odd-feature-gz2_ring"], "hart16", "6 of its 37"),
    (get_schema("desi").columns[1:], "desi", "smooth-or-featured_smooth")])
def test_a_part_of_a_campaign_is_an_error_that_names_the_rest(columns, name, missing):
    with pytest.raises(InputError, match=f"'{name}' is here in part: .*{missing}"): Schema.from_columns(columns)


def test_unknown_campaigns_are_guessed_aloud():
    with pytest.warns(UserWarning, match="shell .yes, no.*asked of everybody"):
        own = Schema.from_columns(["id_str", "file_loc", "ra", "petro_theta", "shell_yes", "shell_no", "shell_total-votes"])
    assert own.columns == ["shell_yes", "shell_no"] and own.questions[0].asked_after == () and own.name == "custom"
    with pytest.raises(InputError, match="counts votes"): Schema.from_columns(["id_str", "ra", "dec"])
    with pytest.raises(InputError, match="come twice: a_x"): Schema.from_columns(["a_x", "a_x", "a_y"])


def test_answers_that_a_campaign_does_not_know_are_said():
    with pytest.warns(UserWarning, match="merging_neither-v1"):
        Schema.from_columns(get_schema("desi").columns + ["merging_neither-v1"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Schema.from_columns(CARD + ["id_str", "merging-dr8_total-votes"]).name == "gz_desi"


# Display and import

def test_names_are_escaped_and_every_question_is_shown():
    page = Schema.from_text("<i>: a&b, <u>\n next: p, q <- <i>_<u>", "<script>")._repr_html_()
    assert not {"<script>", "<i>", "<u>"} & {page[i:i + n] for i in range(len(page)) for n in (3, 8)}
    assert all(q.name in repr(get_schema("gz2")) for q in get_schema("gz2").questions)


@pytest.mark.parametrize("name", ["dr5", "gz2", "euclid", "rings"])
def test_pictures_show_every_question_and_share(name):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    schema = get_schema(name)
    votes = random_votes(schema, n=1)
    ax = schema.plot_tree(schema.fractions(votes)[0])
    texts = [text.get_text() for text in ax.texts]
    assert len([text for text in texts if text.endswith("?")]) == len(schema.questions)
    assert len([text for text in texts if text.endswith("%")]) == len(schema.answers)
    _, own = plt.subplots()
    assert schema.plot_tree(ax=own) is own
    with pytest.raises(InputError, match="draws one galaxy"): schema.plot_tree(np.zeros((2, len(schema.columns))))
    plt.close("all")


def test_palette_and_near_names():
    assert len(set(PALETTE)) == 8 and PALETTE[0] == "#0072B2"
    assert near_names("smoth", ["smooth"]) == "did you mean 'smooth'?"
    assert near_names("x", []) == "there is none to choose from"
    assert near_names("zzz", range(20)).endswith("and 8 more")


def test_the_import_is_light():
    code = ("import sys, gz_nbdev.schema\n"
            "print([m for m in ('torch', 'fastai', 'matplotlib', 'sklearn', 'scipy') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_blanks_around_the_parts_of_a_line():
    spaced = Schema.from_text(" bar : strong , weak\n ring:yes,no<-bar_strong ", "mine")
    assert spaced.columns == ["bar_strong", "bar_weak", "ring_yes", "ring_no"]
    assert spaced.question("ring").asked_after == ("bar_strong",)
