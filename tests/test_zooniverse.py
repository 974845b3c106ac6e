"Raw Zooniverse exports: every trap a test, on rows of the real form; every bad file a message"

import csv
import gzip
import io
import json
from datetime import date

import numpy as np
import pandas as pd
import pytest

from gz_nbdev.catalog import check_catalog, read_catalog
from gz_nbdev.schema import CAMPAIGNS, InputError, Schema, get_schema
from gz_nbdev.simulate import draw_galaxies, draw_votes, vote_model
from gz_nbdev.zooniverse import (
    Workflow,
    add_subjects,
    campaign,
    export_report,
    read_classifications,
    read_reductions,
    read_subjects,
    read_workflow,
    write_exports,
)

HEAD = ("classification_id,user_name,user_id,user_ip,workflow_id,workflow_name,workflow_version,created_at,"
        "gold_standard,expert,metadata,annotations,subject_data,subject_ids").split(",")
ICONS = "https://panoptes-uploads.zooniverse.org/production/project_attached_image"
ICON = f"![feature_or_disk.png]({ICONS}/f353f2f1-a47e-439d-b9ca-020199162a79.png"
DR5 = get_schema("dr5")
LONG = 587722981741363294, 587722981741363323   # the same number, as floats

# The questions and answers of Galaxy Zoo DECaLS (workflow 6122) as volunteers read them; (answers, where each leads)
DECALS = {
    "T0": ("Is the galaxy simply smooth and rounded, with no sign of a disk?",
           {"Smooth": "T1", f"{ICON} =60x) Features or Disk": "T2", "Star or Artifact": "T10"}),
    "T1": ("How rounded is it?", {"Completely round": "T11", "In between": "T11", "Cigar shaped": "T11"}),
    "T2": ("Could this be a disk viewed edge-on?", {"Yes - Edge On Disk": "T3", "No - Something Else": "T4"}),
    "T3": ("Does the galaxy have a bulge at its centre? If so, what shape?",
           {"Rounded": "T11", "Boxy": "T11", "No bulge": "T11"}),
    "T4": ("Is there a bar feature through the centre of the galaxy?",
           {"Strong Bar": "T5", "Weak Bar": "T5", "No Bar": "T5"}),
    "T5": ("Is there any sign of a spiral arm pattern?", {"Yes": "T6", "No": "T8"}),
    "T6": ("How tightly wound do the spiral arms appear?", {"Tight": "T7", "Medium": "T7", "Loose": "T7"}),
    "T7": ("How many spiral arms are there?",
           {"1": "T8", "2": "T8", "3": "T8", "4": "T8", "More than 4": "T8", "Can't tell": "T8"}),
    "T8": ("How prominent is the central bulge, compared with the rest of the galaxy?",
           {"No bulge": "T11", "Small": "T11", "Moderate": "T11", "Large": "T11", "Dominant": "T11"}),
    "T11": ("Is the galaxy currently merging, or is there any sign of tidal debris?",
            {"Merging": "T10", "Major Disturbance": "T10", "Minor Disturbance": "T10", "None": "T10"})}
RARE = {"type": "multiple", "question": "Do you see any of these rare features in the image?",
        "answers": [{"label": f"![ring.png]({ICONS}/aa3e8836.png) Ring"}, {"label": "Lens or arc"}]}


def decals_tasks(**more) -> dict:
    tasks = {key: {"type": "single", "question": text, "required": True,
                   "answers": [{"label": label, "next": then} for label, then in answers.items()]}
             for key, (text, answers) in DECALS.items()}
    return {**tasks, "T10": RARE, **more}


def workflow_row(tasks, strings=(), workflow_id="6122", version="28", minor="30", first="T0",
                 name="DECaLS DR5") -> dict:
    return dict(workflow_id=workflow_id, display_name=name, version=version, active="true",
                classifications_count="105171",
                pairwise="false", grouped="false", prioritized="false", primary_language="en", first_task=first,
                tutorial_subject_id="", retired_set_member_subjects_count="9056",
                tasks=tasks if isinstance(tasks, str) else json.dumps(tasks),
                retirement='{"options":{"count":40},"criteria":"classification_count"}', aggregation="{}",
                strings=json.dumps(dict(strings)), minor_version=minor)


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def decals(tmp_path_factory) -> Workflow:
    path = write_csv(tmp_path_factory.mktemp("flow") / "workflows.csv", [workflow_row(decals_tasks())])
    return read_workflow(path, names="dr5")


def row(number=91178981, user="a-volunteer", user_id="123456", ip="2c61707e96c97a759840", version="28.30",
        subject="15715879",
        live=True, annotations=None, answers=None, created="2018-02-20 10:44:42 UTC", workflow_id="6122", gold="",
        data=None) -> dict:
    "One row as Zooniverse writes it"
    metadata = {"session": "e69d40c9", "viewport": {"width": 1081, "height": 1049},
                "started_at": "2018-02-20T10:41:13.381Z",
                "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:58.0) Gecko/20100101 Firefox/58.0", "utc_offset": "0",
                "finished_at": "2018-02-20T10:44:42.480Z", "live_project": live, "user_language": "en",
                "user_group_ids": [],
                "subject_dimensions": [{"clientWidth": 424, "clientHeight": 424, "naturalWidth": 424,
                                        "naturalHeight": 424}]}
    if annotations is None:
        answers = {"T0": "Smooth"} if answers is None else answers
        annotations = [{"task": task, "task_label": DECALS.get(task, ("?",))[0], "value": value}
                       for task, value in answers.items()]
    data = {"retired": None, "ra": 319.11521779916546, "dec": -0.826509379829966, "mag.g": 13.674222230911255,
            "nsa_id": 189862.0, "redshift": 0.019291512668132782} if data is None else data
    def cell(value): return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return dict(zip(HEAD, [number, user, user_id, ip, workflow_id, "DECaLS DR5", version, created, gold, "",
                           cell(metadata),
                           cell(annotations), cell({subject: data}) if isinstance(data, dict) else data, subject]))


def read(tmp_path, workflow, rows, **options) -> pd.DataFrame:
    return read_classifications(write_csv(tmp_path / "classifications.csv", rows), workflow, progress=False, **options)


def votes(table, at=0) -> dict:
    "The votes of one subject that are not 0, without the rare features"
    values = table.iloc[at][[c for c in table if "_" in c and c not in ("id_str", "subject_id") and "rare" not in c]]
    return {column: int(value) for column, value in values.items() if value}


def said(table) -> str: return str(export_report(table))


# --- the tree

def test_decals_workflow_is_the_published_tree(decals):
    for question in DR5.questions:
        assert set(decals.question(question.name).asked_after) == set(question.asked_after)
    assert decals.columns[:len(DR5.columns)] == DR5.columns
    assert not decals.notes
    matched = decals.table.set_index(["task", "answer"]).column
    assert matched["T8", "No bulge"] == "bulge-size-dr5_none" and matched["T3", "No bulge"] == "edge-on-bulge-dr5_none"
    assert matched["T2", "Yes - Edge On Disk"] == "disk-edge-on-dr5_yes"
    assert matched["T11", "Merging"] == "merging-dr5_merger"
    assert matched["T10", "Ring"].endswith("ring_yes")


def test_tree_of_own_names_has_the_same_shape(tmp_path):
    flow = read_workflow(write_csv(tmp_path / "w.csv", [workflow_row(decals_tasks())]))
    assert flow.columns[0] == "galaxy-simply-smooth-rounded_smooth"
    assert flow.question("how-rounded").asked_after == (flow.columns[0],)
    assert [len(flow.parents(q.name)) for q in flow.questions if q.name.startswith("galaxy-currently")] == [2]
    assert flow.plot_tree() is not None


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_every_campaign_goes_to_a_workflow_and_back(name, tmp_path):
    schema = get_schema(name)
    some = pd.DataFrame([dict.fromkeys(schema.columns, 0)])
    write_exports(some.assign(**{schema.columns[0]: 3}), schema, tmp_path, messy=False)
    flow = read_workflow(tmp_path / "workflows.csv", names=name)
    assert [q.name for q in flow.questions[:len(schema.questions)]] == [q.name for q in schema.questions]
    own = read_workflow(tmp_path / "workflows.csv")
    texts = {q.text: {c.replace(f"-{q.campaign}_", "_") for c in q.asked_after} for q in schema.questions}
    shapes = {len(flow.tasks) and task.text: task.columns[0].rpartition("_")[0] for task in own.tasks
              if task.kind == "single"}
    for question in schema.questions:
        mine = own.question(shapes[question.text.replace("-", " ").capitalize() + "?"])
        assert len(mine.asked_after) == len(texts[question.text]), (name, question.name)
    assert not [note for note in flow.notes if "tree is kept" in note]


def test_old_exports_hold_their_text_in_place_and_new_ones_in_strings(tmp_path):
    apart = {"T0": {"type": "single", "question": "T0.question",
                    "answers": [{"label": "T0.answers.0.label"}, {"label": "T0.answers.1.label"}]}}
    texts = {"T0.question": "**Is there a ring?**", "T0.answers.0.label": "Yes", "T0.answers.1.label": "No"}
    placed = {"T0": {"type": "single", "question": "Is there a ring?", "answers": [{"label": "Yes"}, {"label": "No"}]}}
    path = write_csv(tmp_path / "w.csv", [workflow_row(apart, texts, "1"), workflow_row(placed, (), "2")])
    assert read_workflow(path, "1").columns == read_workflow(path, "2").columns == ["ring_yes", "ring_no"]
    assert read_workflow(path, 1, names="rings").columns == ["ring_yes", "ring_no"]


def test_versions_are_text(tmp_path):
    versions = ("28", "30"), ("28", "4"), ("9", "100")
    rows = [workflow_row(decals_tasks(), version=major, minor=minor) for major, minor in versions]
    path = write_csv(tmp_path / "w.csv", rows)
    assert read_workflow(path).version == "28.30"
    assert read_workflow(path, version="9").version == "9.100"
    assert read_workflow(path, version="28.4").version == "28.4"
    with pytest.raises(InputError, match=r"no version '29', there are '28.30', '28.4'"):
        read_workflow(path, version="29")


def test_other_tasks_are_left_out_and_told_but_lead_on(tmp_path):
    tasks = {"T0": {"type": "single", "question": "Round?",
                    "answers": [{"label": "Yes", "next": "T1"}, {"label": "No"}]},
             "T1": {"type": "drawing", "instruction": "Draw", "next": "T2"},
             "T2": {"type": "combo", "tasks": ["T3", "T4"]},
             "T3": {"type": "single", "question": "Blue?", "answers": [{"label": "Yes"}, {"label": "No"}]},
             "T4": {"type": "text", "instruction": "Why?"}, "T5": {"type": "shortcut", "answers": [{"label": "x"}]},
             "T6": {"type": "single", "question": "Done?", "answers": [{"label": "Yes"}, {"label": "No"}]}}
    flow = read_workflow(write_csv(tmp_path / "w.csv", [workflow_row(tasks)]))
    assert flow.columns == ["round_yes", "round_no", "blue_yes", "blue_no"]
    assert flow.question("blue").asked_after == ("round_yes",)
    assert [note.split(":")[0] for note in flow.notes] == ["task T1 (drawing) is no question",
                                                           "task T4 (text) is no question",
                                                           "task T6 cannot be reached from T0"]


def test_names_of_questions(tmp_path):
    path = write_csv(tmp_path / "w.csv", [workflow_row(decals_tasks())])
    assert read_workflow(path, names={"T0": "smooth-or-featured"}).columns[1] == "smooth-or-featured_features-or-disk"
    with pytest.raises(InputError, match="no such task: did you mean 'T2' or 'T1' or 'T11'"):
        read_workflow(path, names={"T12": "x"})
    with pytest.raises(InputError, match="does not ask the questions of schema 'rings'"):
        read_workflow(path, names="rings")


def test_older_answers_are_refused_and_stay_zero(tmp_path):
    tasks = decals_tasks()
    for answer, label in zip(tasks["T11"]["answers"],
                             ("Merging", "Tidal Debris", "Both (Merger & Tidal Debris)", "Neither")):
        answer["label"] = label
    flow = read_workflow(write_csv(tmp_path / "w.csv", [workflow_row(tasks)]), names="dr5")
    assert "votes not used: no task asks merging-dr5, it stays 0 (nobody was asked)" in flow.notes
    table = read(tmp_path, flow, [row(answers={"T0": "Smooth", "T11": "Neither"})])
    assert table[[c for c in DR5.columns if c.startswith("merging")]].to_numpy().sum() == 0
    assert "! votes not used: no task asks merging-dr5" in said(table)


def test_labels_that_are_hostile_alike_or_icons_only(tmp_path):
    labels = ["<img src=x onerror=alert(1)>", f"![star.png]({ICONS}/1.png)", "Yes!", "Yes", "..."]
    tasks = {"T0": {"type": "single", "question": "<script>alert(1)</script>?",
                    "answers": [{"label": label} for label in labels]}}
    flow = read_workflow(write_csv(tmp_path / "w.csv", [workflow_row(tasks, name="<b>zoo</b>")]))
    assert [answer.text for answer in flow.answers] == ["img-src-x-onerror-alert-1", "star", "yes", "yes-3", "answer-4"]
    for text in ("<img", "<script", "<b>zoo"): assert text not in flow._repr_html_()
    table = read(tmp_path, flow, [row(1, answers={"T0": labels[0]}),
                                  row(2, user_id="2", answers={"T0": "<img src=y onerror=x>"})])
    assert votes(table) == {flow.columns[0]: 1}
    assert "<img" not in export_report(table)._repr_html_() and "&lt;img src=y" in export_report(table)._repr_html_()


# --- the nine traps

def test_icons_go_and_text_counts(tmp_path, decals):
    table = read(tmp_path, decals, [row(1, answers={"T0": f"{ICON}) Features or Disk",
                                                    "T2": f"{ICON}) No - Something Else"}),
                                    row(2, user_id="2",
                                        answers={"T0": f"{ICON} =60x) Features or Disk", "T2": "no - something else"})])
    assert votes(table) == {"smooth-or-featured-dr5_featured-or-disk": 2, "disk-edge-on-dr5_no": 2}


def test_value_may_be_text_list_null_or_empty(tmp_path, decals):
    ring, lens = (c for c in decals.columns if c.endswith(("ring_yes", "arc_yes")))
    rows = [row(1, answers={"T0": "Smooth", "T10": [f"![ring.png]({ICONS}/aa3e8836.png) Ring"]}),
            row(2, user_id="2", answers={"T0": "Smooth", "T10": []}), row(3, user_id="3", answers={"T0": None}),
            row(4, user_id="4", answers={"T0": "", "T10": None}),
            row(5, user_id="5", answers={"T10": ["Ring", "Lens or arc"]})]
    table = read(tmp_path, decals, rows)
    assert table[[ring, ring[:-4] + "_no", lens, lens[:-4] + "_no"]].iloc[0].tolist() == [2, 1, 1, 2]
    assert "2 classifications without an answer" in said(table) and table.classifications[0] == 3


def test_numbers_of_answers_and_texts_that_are_numbers(tmp_path, decals):
    texts = [{"task": "T7", "task_label": "How many spiral arms are there?", "value": "1"}]
    rows = [row(1, annotations=texts), row(2, user_id="2", annotations=[{"task": "T7", "value": "1"}]),
            row(3, user_id="3", annotations=[{"task": "T7", "value": 1}, {"task": "T0", "value": 0}]),
            row(4, user_id="4", annotations=[{"task": DECALS["T0"][0], "task_id": "T0",
                                              "value": f"{ICON}) Features or Disk",
                                              "value_index": 1, "multiple_choice": False},
                                             {"task": "rare?", "task_id": "T10", "value": ["Ring"], "value_index": [0],
                                              "multiple_choice": True}])]
    table = read(tmp_path, decals, rows)
    assert votes(table) == {"spiral-arm-count-dr5_1": 1, "spiral-arm-count-dr5_2": 2,
                            "smooth-or-featured-dr5_smooth": 1,
                            "smooth-or-featured-dr5_featured-or-disk": 1}
    assert table[[c for c in decals.columns if c.endswith("ring_yes")]].iloc[0, 0] == 1


def test_versions_are_filtered_as_text_and_shown(tmp_path, decals):
    rows = [row(1), row(2, user_id="2", version="28.4"), row(3, user_id="3", version="2.8"),
            row(4, user_id="4", version="27.112")]
    table = read(tmp_path, decals, rows)
    assert table.classifications[0] == 2
    assert "2 classifications of other versions: 2.8 (1), 27.112 (1)" in said(table)
    assert read(tmp_path, decals, rows, version="28.4").classifications[0] == 1
    assert read(tmp_path, decals, rows, version="any").classifications[0] == 4


def test_people_who_are_not_logged_in(tmp_path, decals):
    rows = [row(1, user="not-logged-in-2c61", user_id=""), row(2, user="not-logged-in-2c61", user_id="", ip="other"),
            row(3, user="", user_id="", ip="77ff"), row(4, user="", user_id="", ip="77ff"),
            row(5, user="", user_id="", ip=""),
            row(6, user="", user_id="", ip=""), row(7, user="renamed", user_id="123456"),
            row(8, user="a-volunteer", user_id="123456")]
    table = read(tmp_path, decals, rows)
    assert table.classifications[0] == 5   # 2c61, 77ff, two of whom nothing is known, 123456
    assert "3 classifications by people who had seen the subject before" in said(table)


@pytest.mark.parametrize("key", ["iauname", "!iauname", "IAUNAME", "#iauname", "//iauname"])
def test_keys_of_subjects_have_marks_and_capitals(tmp_path, decals, key):
    table = read(tmp_path, decals, [row(data={key: "J211627.65-004935.4", "!RA": 319.1, "#dec": -.8})])
    assert table.loc[0, ["id_str", "subject_id", "ra", "dec"]].tolist() == ["J211627.65-004935.4", "15715879", 319.1,
                                                                            -.8]


def test_subjects_are_known_by_their_own_entry(tmp_path, decals):
    both = json.dumps({"2": {"iauname": "two"}, "1": {"iauname": "one"}})
    table = read(tmp_path, decals, [row(1, subject="1", data=both), row(2, subject="2", data=both)])
    assert table.id_str.tolist() == ["one", "two"]


def test_ids_stay_text_and_names_that_are_shared_are_no_ids(tmp_path, decals):
    rows = [row(1, subject="0015", data={"iauname": "same", "objid": 587722981741363294}),
            row(2, subject="16", data={"iauname": "same", "objid": 587722981741363323})]
    table = read(tmp_path, decals, rows)
    assert table.id_str.tolist() == ["587722981741363294",
                                     "587722981741363323"] and table.subject_id.tolist() == ["0015", "16"]
    assert "'iauname' is no id_str: it is not unique" in said(table)
    floats = read(tmp_path, decals, [row(1, data={"nsa_id": 189862.0})])
    assert floats.id_str.tolist() == ["15715879"]
    assert read(tmp_path, decals, [row(1, data={"#Filter": "g7"})], id_name="filter").id_str.tolist() == ["g7"]
    with pytest.raises(InputError, match="No subject has 'ianame' in its metadata: did you mean 'iauname'"):
        read(tmp_path, decals, rows, id_name="ianame")


def test_ids_keep_their_digits_where_some_subjects_have_none(tmp_path, decals):
    rows = [row(1, subject="1", data={"objid": LONG[0], "iauname": "a"}), row(2, subject="2", data={"objid": LONG[1]}),
            row(3, subject="3", data={"iauname": "c"})]
    table = read(tmp_path, decals, rows)
    assert table.id_str.tolist() == ["1", "2", "3"] and "'objid' is no id_str: 1 subject without it" in said(table)
    whole = read(tmp_path, decals, [*rows[:2], row(3, subject="3", data={"objid": 7})])
    assert whole.id_str.tolist() == [*map(str, LONG), "7"]


def test_the_first_vote_of_a_person_counts_by_time_not_by_row(tmp_path, decals):
    rows = [row(1, answers={"T0": "Smooth"}, created="2018-02-20 12:00:00 UTC"),
            row(2, answers={"T0": "Star or Artifact"}, created="2018-02-20 11:59:59 UTC"),
            row(3, answers={"T0": "Smooth"}, subject="7"), row(4, answers={"T0": None}, subject="8"),
            row(5, subject="8")]
    table = read(tmp_path, decals, rows).set_index("subject_id")
    assert table.loc["15715879", "smooth-or-featured-dr5_artifact"] == 1
    assert table.classifications.tolist() == [1, 1, 1]   # and leaving without an answer is no vote


def test_before_go_live_gold_standard_and_since(tmp_path, decals):
    rows = [row(1, live=False), row(2, gold="true", user_id="2"),
            row(3, user_id="3", created="2017-01-01 00:00:00 UTC"), row(4)]
    table = read(tmp_path, decals, rows, since="2018-01-01")
    assert table.classifications[0] == 1   # of the person whose test came before the launch
    for text in ("1 classification made before the project went live", "1 classification made as gold standard",
                 "1 classification made before the date given"): assert text in said(table)


@pytest.mark.parametrize("created", ["", "20/02/2018 10:44"])
def test_classifications_without_a_date(tmp_path, decals, created):
    rows = [row(1, created=created), row(2, user_id="2"), row(3, user_id="2", created=created),
            row(4, user_id="4", created="2017-01-01 00:00:00 UTC"), row(5, user_id="5", answers={"T0": None}, created="")]
    table = read(tmp_path, decals, rows)
    assert table.classifications[0] == 3   # the undated one of person 2 comes after the dated one
    assert "! 3 classifications without a date that can be read (counted" in said(table) and repr(created) in said(table)
    table = read(tmp_path, decals, rows, since="2018-01-01")
    assert table.classifications[0] == 1 and "1 classification made before the date given" in said(table)
    assert "! 3 classifications without a date that can be read (left out" in said(table)
    with pytest.raises(InputError, match="no date that can be read .*left out.*2018-02-20 10:44:42 UTC"):
        read(tmp_path, decals, rows[:1], since="2018-01-01")
    assert "without a date" not in said(read(tmp_path, decals, rows[1:2]))


@pytest.mark.parametrize("since", ["2018-02-20", "2018-02-20T11:44:42+01:00", "2018-02-20 10:44:42 UTC", "2018-02",
                                   date(2018, 2, 20), pd.Timestamp("2018-02-20 12:44:42", tz="Europe/Helsinki")])
def test_since_may_be_a_day_or_a_time_in_any_zone(tmp_path, decals, since):
    rows = [row(1), row(2, user_id="2", created="2018-01-31 23:59:59 UTC")]
    assert read(tmp_path, decals, rows, since=since).classifications[0] == 1


@pytest.mark.parametrize("since", ["2018-02-30", "yesterday or so", "01/02/2018", "", 7.5, pd.NaT])
def test_since_that_is_no_date(tmp_path, decals, since):
    with pytest.raises(InputError, match="since=.* is no date.*'2018-02-01'"):
        read(tmp_path, decals, [row()], since=since)


def test_rows_of_an_export_that_is_doubled_count_once(tmp_path, decals):
    nobody = [row(i, user="", user_id="", ip="") for i in range(3)] + [row(8), row(9, answers={"T0": None})]
    table = read(tmp_path, decals, nobody * 2)
    assert votes(table) == {"smooth-or-featured-dr5_smooth": 4} and table.classifications[0] == 4
    for text in ("4 of 10 classifications counted", "5 classifications whose number came before",
                 "1 classification without an answer"): assert text in said(table)
    assert "seen the subject before" not in said(table)
    rows = [{**part, "classification_id": number} for part in nobody[:2] for number in ("", "9.1E+07")]
    assert "whose number came before" not in said(read(tmp_path, decals, rows + nobody))


def test_surveys_count_a_vote_for_each_choice(tmp_path):
    tasks = {"init": {"type": "survey", "choicesOrder": ["LION", "GAZELLETHOMSONS"],
                      "choices": {"LION": {"label": "init.choices.LION.label"},
                                  "GAZELLETHOMSONS": {"label": "Gazelle (Thomson's)"}}}}
    flow = read_workflow(write_csv(tmp_path / "w.csv",
                                   [workflow_row(tasks, {"init.choices.LION.label": "Lion"}, first="init")]))
    assert flow.columns == ["lion_yes", "lion_no", "gazelle-thomsons_yes", "gazelle-thomsons_no"]
    choices = [{"choice": "GAZELLETHOMSONS", "answers": {"HOWMANY": "2"}, "filters": {}},
               {"choice": "LION", "answers": {}, "filters": {}}]
    table = read(tmp_path, flow, [row(1, answers={"init": choices}),
                                  row(2, user_id="2", answers={"init": choices[:1]})])
    assert table[flow.columns].iloc[0].tolist() == [1, 1, 2, 0]


def test_combos_nest_and_drawings_are_passed_over(tmp_path):
    tasks = {"T0": {"type": "combo", "tasks": ["T1", "T2", "T3"]}, "T3": {"type": "drawing"},
             "T1": {"type": "single", "question": "Blue?", "answers": [{"label": "Yes"}, {"label": "No"}]},
             "T2": {"type": "multiple", "question": "Features?", "answers": [{"label": "Ring"}]}}
    flow = read_workflow(write_csv(tmp_path / "w.csv", [workflow_row(tasks)]))
    nested = [{"task": "T0", "task_label": None, "value": [{"task": "T1", "task_label": "Blue?", "value": "Yes"},
                                                           {"task": "T2", "task_label": "Features?", "value": []},
                                                           {"task": "T3", "value": [{"x": 1.5, "y": 2, "tool": 0}]}]}]
    table = read(tmp_path, flow, [row(annotations=nested)])
    assert table[flow.columns].iloc[0].tolist() == [1, 0, 0, 1] and "does not have" not in said(table)


def test_a_task_that_comes_twice_counts_once_with_its_last_answer(tmp_path, decals):
    twice = [{"task": "T0", "task_label": "?", "value": value} for value in ("Smooth", "Star or Artifact", None)]
    assert votes(read(tmp_path, decals, [row(annotations=twice)])) == {"smooth-or-featured-dr5_artifact": 1}


def test_old_exports_without_subject_ids_and_ip(tmp_path, decals):
    rows = [{key: value for key, value in row(i, user_id=str(i)).items()
             if key not in ("subject_ids", "user_ip", "gold_standard")} for i in (1, 2)]
    assert read(tmp_path, decals, rows)[["subject_id", "classifications"]].iloc[0].tolist() == ["15715879", 2]


# --- files that are not as they should be

def test_unknown_answers_are_told_with_what_is_near(tmp_path, decals):
    table = read(tmp_path, decals, [row(1), row(2, user_id="2", answers={"T0": "Smoth"}),
                                    row(3, user_id="3", answers={"T77": "Yes", "T0": "Smooth"})])
    report = said(table)
    assert votes(table) == {"smooth-or-featured-dr5_smooth": 2}
    for text in ("! 2 answers that the workflow does not have", "T0: 'Smoth' (1)", "did you mean 'Smooth'"):
        assert text in report


def test_an_export_of_another_workflow(tmp_path, decals):
    with pytest.raises(InputError, match=r"another workflow: nothing of 6122 \(DECaLS DR5\); it has 10 \(2\)"):
        read(tmp_path, decals, [row(1, workflow_id="10"), row(2, workflow_id="10")])
    with pytest.raises(InputError, match=r"looks like an export of another workflow: .*T1: 'Cat' \(2\)"):
        read(tmp_path, decals, [row(i, user_id=str(i), answers={"T1": "Cat"}) for i in (1, 2)])
    with pytest.raises(InputError, match=r"none of version 28 of workflow 6122; it has versions 3.1 \(1\)"):
        read(tmp_path, decals, [row(version="3.1")])


@pytest.mark.parametrize("column, text", [("annotations", '[{"task":"T0","value":"Smo'), ("annotations", "[{]"),
                                          ("annotations", "[1]"),
                                          ("annotations", '[{"task":["T0"],"value":1}]'),
                                          ("annotations", '[{"task":"T0","value":Infinity}]'),
                                          ("annotations", "[" * 5000 + "]" * 5000), ("subject_data", '{"15715879":{}'),
                                          ("subject_data", '{"1":{}}'), ("metadata", '{"live_project":tr')])
def test_a_broken_cell_costs_its_row_alone(tmp_path, decals, column, text):
    rows = [row(i, user_id=str(i)) for i in range(4)]
    rows[0][column] = text
    table = read(tmp_path, decals, rows)
    assert table.classifications[0] == 3
    assert f"1 row that cannot be read: line 2, classification 0: {column}" in said(table)


def test_a_row_that_is_cut_spares_its_neighbours(tmp_path, decals):
    path = write_csv(tmp_path / "c.csv", [row(i, user_id=str(i)) for i in range(6)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:300] + b"\r\n"                    # in a cell
    lines[4] = lines[4][:40] + b"\r\n"                     # before the cells with JSON
    path.write_bytes(b"".join(lines))
    table = read_classifications(path, decals, progress=False)
    assert table.classifications[0] == 4
    assert "line 3, classification 1: cut in a cell, line 5, classification 3:" in said(table)


@pytest.mark.parametrize("left", [30, 400, -6])
def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path, decals, left):
    path = write_csv(tmp_path / "c.csv", [row(i, user_id=str(i)) for i in range(5)])
    data = path.read_bytes()
    start = data.rstrip(b"\r\n").rfind(b"\n") + 1
    path.write_bytes(data[:start + left] if left > 0 else data[:left])   # in a cell; in the number of the subject
    table = read_classifications(path, decals, progress=False)
    assert table.classifications.tolist() == [4]
    assert f"line 6, classification 4: {'the file breaks off here' if left > 0 else 'subject_data'}" in said(table)


def test_a_truncated_gz_is_read_as_far_as_it_goes(tmp_path, decals):
    rng = np.random.default_rng(0)
    rows = [row(i, user_id=str(i), ip=rng.bytes(200).hex()) for i in range(300)]
    plain = write_csv(tmp_path / "c.csv", rows).read_bytes()
    whole, cut = tmp_path / "whole.csv.gz", tmp_path / "cut.csv.gz"
    whole.write_bytes(gzip.compress(plain))
    cut.write_bytes(whole.read_bytes()[:-2000])
    assert read_classifications(whole, decals, progress=False).classifications[0] == 300
    table = read_classifications(cut, decals, progress=False)
    assert 250 < table.classifications[0] < 300 and "the file breaks off here" in said(table)


def test_more_than_half_broken_is_an_error(tmp_path, decals):
    rows = [row(i, user_id=str(i), annotations="[{") for i in range(3)] + [row(9)]
    with pytest.raises(InputError, match=r"3 of 4 rows cannot .* line 2 \(classification 0: annotations\)"):
        read(tmp_path, decals, rows)


def test_other_ways_to_write_a_csv(tmp_path, decals):
    rows = [row(i, user_id=str(i), user='ann, "the\ncat"') for i in range(3)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, HEAD, delimiter=";", quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    assert read_classifications(tmp_path / "c.csv", decals, progress=False).classifications[0] == 3


def test_blocks_of_a_file_may_end_anywhere(tmp_path, decals, monkeypatch):
    path = write_csv(tmp_path / "c.csv", [row(i, user_id=str(i), user="ann\nbob" if i % 3 else "ann")
                                          for i in range(40)])
    for size in (700, 1999, 4096):
        monkeypatch.setattr("gz_nbdev.zooniverse._BLOCK", size)
        table = read_classifications(path, decals, progress=False)
        assert table.classifications[0] == 40 and "cannot be read" not in said(table)


@pytest.mark.parametrize("text, message", [
    ("", "is empty: was the export ready"), ("<!DOCTYPE html><html><body>Sign in", "is a web page, not an export"),
    (",".join(HEAD) + "\n", "no classification below its first line"),
    (",".join(HEAD).replace("annotations", "annotation") + "\n1", "no column 'annotations': did you mean 'annotation'"),
    ("subject_id,project_id,workflow_id,metadata\n",
     r"not a whole classification export: it has no column 'classification_id' \(6 are")])
def test_files_that_are_no_export(tmp_path, decals, text, message):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(InputError, match=message): read_classifications(tmp_path / "c.csv", decals, progress=False)


def test_files_that_are_not_there_and_workflows_that_are_none(tmp_path, decals):
    write_csv(tmp_path / "galaxy-zoo-classifications.csv", [row()])
    with pytest.raises(InputError, match="did you mean 'galaxy-zoo-classifications.csv'"):
        read_classifications(tmp_path / "galaxy-zoo-classification.csv", decals)
    with pytest.raises(InputError, match="only with the workflow they were given to"):
        read_classifications(tmp_path / "galaxy-zoo-classifications.csv", DR5)
    (tmp_path / "x.csv.gz").write_bytes(b"not gz at all")
    with pytest.raises(InputError, match="x.csv.gz cannot be read"): read_classifications(tmp_path / "x.csv.gz", decals)


def circle() -> dict:
    return {"T0": {"type": "single", "question": "a", "answers": [{"label": "x", "next": "T1"}, {"label": "y"}]},
            "T1": {"type": "single", "question": "b", "answers": [{"label": "x", "next": "T0"}, {"label": "y"}]}}


@pytest.mark.parametrize("tasks, message", [
    ('{"T0": {"type"', r"workflow 6122 version 28.30: the column 'tasks' is broken"), ("[]", "holds no object but"),
    ("{}", "has no tasks"), ('{"T0": {"type": "drawing"}}', r"asks no question.*task T0 \(drawing\)"),
    ('{"T0": {"type": "single", "question": "?", "answers": "none"}}', "not as Zooniverse writes them"),
    ('{"T0": {"type": "single", "question": "?", "answers": [{"label": "a", "next": ["T1"]}, {"label": "b"}]}}',
     "not as Zooniverse"),
    (json.dumps(circle()), "in a circle: T0 <- T1 <- T0")])
def test_workflows_that_are_broken(tmp_path, tasks, message):
    path = write_csv(tmp_path / "w.csv", [workflow_row(tasks)])
    with pytest.raises(InputError, match=message): read_workflow(path)


def test_several_workflows(tmp_path):
    path = write_csv(tmp_path / "w.csv", [workflow_row(decals_tasks()),
                                          workflow_row(decals_tasks(), workflow_id="10", name="Cats")])
    with pytest.raises(InputError, match=r"has 2 workflows: 6122 \(DECaLS DR5\), 10 \(Cats\). Say which"):
        read_workflow(path)
    with pytest.raises(InputError, match=r"no workflow '11': there are 6122"): read_workflow(path, "11")
    assert read_workflow(path, "Cats").id == "10"


@pytest.mark.parametrize("seed", range(4))
def test_damage_anywhere_is_an_error_for_the_user_or_a_note(tmp_path, decals, seed):
    rng = np.random.default_rng(seed)
    whole = write_csv(tmp_path / "c.csv", [row(i, user_id=str(i), subject=str(i % 3)) for i in range(12)]).read_bytes()
    for _ in range(40):
        data = bytearray(whole)
        for at in rng.integers(0, len(whole) - 1, rng.integers(1, 4)).tolist():
            if rng.random() < .5: data[at:at + int(rng.choice([1, 50, 2000]))] = b""
            data[at:at] = [b'"', b"\n", b",", b"\x00", b"\xff", b"\r", b"[[", b"null"][rng.integers(8)]
        (tmp_path / "c.csv").write_bytes(data)
        try: table = read_classifications(tmp_path / "c.csv", decals, progress=False)
        except InputError: continue
        assert table.classifications.sum() <= 12 and "counted" in said(table)


def test_the_bar_is_over_bytes_of_plain_and_packed_files(tmp_path, decals, capsys):
    path = write_csv(tmp_path / "c.csv", [row(i, user_id=str(i)) for i in range(5)])
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("c.csv", "c.csv.gz"): assert read_classifications(tmp_path / name, decals).classifications[0] == 5
    assert "classifications/s" in capsys.readouterr().out


# --- subjects and reductions

def subject_row(number="1", workflow="6122", count=40, metadata=None,
                locations='{"0":"https://panoptes-uploads.zooniverse.org/a.jpeg"}'):
    metadata = {"!iauname": f"J{number}", "ra": 10.5, "#dec": -3} if metadata is None else metadata
    return dict(subject_id=number, project_id=5733, workflow_id=workflow, subject_set_id=60,
                metadata=metadata if isinstance(metadata, str) else json.dumps(metadata), locations=locations,
                classifications_count=count,
                retired_at="2018-03-01 10:00:00 UTC", retirement_reason="classification_count", created_at="",
                updated_at="")


def test_subjects_come_once_with_their_metadata_in_columns(tmp_path):
    rows = [subject_row("2"), subject_row("1", "9999", 3, {"iauname": "J1", "subject_id": 5}), subject_row("1"),
            subject_row("3", locations='[{"image/png": "javascript:alert(1)"}]')]
    table = read_subjects(write_csv(tmp_path / "s.csv", rows))
    assert table.subject_id.tolist() == ["2", "1", "3"] and table.workflow_id.tolist() == ["6122"] * 3
    assert table.iauname.tolist() == ["J2", "J1", "J3"] and table.ra.tolist() == [10.5] * 3
    assert table.url.tolist() == ["https://panoptes-uploads.zooniverse.org/a.jpeg"] * 2 + [""]
    test = read_subjects(tmp_path / "s.csv", 9999)
    assert test.workflow_id.tolist() == ["6122", "9999", "6122"] and test.metadata_subject_id.tolist() == ["", "5", ""]


def test_long_numbers_keep_their_digits_where_some_subjects_have_none(tmp_path, monkeypatch):
    rows = [subject_row(str(i), metadata={"dr7objid": n, "sdss": n, "z": .5, "age": i}) for i, n in enumerate(LONG)]
    path = write_csv(tmp_path / "s.csv", [*rows, subject_row("2", metadata={"Filename": "tutorial.png", "age": None})])
    for block in (1 << 24, 300):
        monkeypatch.setattr("gz_nbdev.zooniverse._BLOCK", block)
        table = read_subjects(path)
        for column in ("dr7objid", "sdss"): assert table[column].tolist() == [*map(str, LONG), ""]
        assert table.z.dtype == table.age.dtype == float and table.age[:2].tolist() == [0, 1]
        assert table.classifications_count.tolist() == [40] * 3 and table.workflow_id.tolist() == ["6122"] * 3
        assert all(pd.api.types.is_string_dtype(table[c]) for c in ("subject_id", "workflow_id", "retired_at", "url"))
    whole = read_subjects(write_csv(tmp_path / "s.csv", rows))
    assert whole.sdss.tolist() == [*map(str, LONG)] and whole.age.dtype == int


def test_a_campaign_goes_by_ids_of_all_digits(tmp_path):
    write_csv(tmp_path / "w.csv", [workflow_row(decals_tasks())])
    write_csv(tmp_path / "c.csv", [row(i, user_id=str(i), subject=str(i), data={}) for i in range(2)])
    rows = [subject_row(str(i), metadata={"dr7objid": n, "age": i}) for i, n in enumerate(LONG)]
    write_csv(tmp_path / "s.csv", [*rows, subject_row("9", metadata={"Filename": "tutorial.png"})])
    files = [tmp_path / f"{name}.csv" for name in "cws"]
    assert campaign(*files, progress=False).id_str.tolist() == [*map(str, LONG)]
    write_csv(tmp_path / "s.csv", [rows[0], subject_row("9", metadata={"age": 7})])
    table = campaign(*files, id_name="age", progress=False)
    assert table.dr7objid.iloc[0] == str(LONG[0]) and "'age' is no id_str: 1 subject without it" in said(table)


def test_broken_subjects_are_told(tmp_path):
    rows = [subject_row(str(i), metadata="{" if i == 1 else None) for i in range(4)]
    table = read_subjects(write_csv(tmp_path / "s.csv", rows))
    assert len(table) == 3 and "1 subject that cannot be read: line 3, subject 1: metadata or locations" in said(table)
    with pytest.raises(InputError, match="2 of 2 subjects cannot be read"):
        read_subjects(write_csv(tmp_path / "s.csv", [subject_row(str(i), metadata="[1]") for i in range(2)]))


def test_subjects_join_on_text(tmp_path, decals):
    table = read(tmp_path, decals, [row(1, subject="0015"), row(2, subject="16")])
    subjects = read_subjects(write_csv(tmp_path / "s.csv", [subject_row("0015"), subject_row("15")]))
    joined = add_subjects(table, subjects)
    assert joined.subject_id.tolist() == ["0015", "16"] and joined.url.isna().tolist() == [False, True]
    assert "1 subject with votes not among the subjects" in said(joined)
    with pytest.raises(InputError, match="None of the 2 subjects with votes"):
        add_subjects(table, subjects.assign(subject_id=["a", "b"]))
    with pytest.raises(InputError, match="has 0015 more than once"): add_subjects(table, pd.concat([subjects, subjects]))


def test_reductions_zero_is_missing_and_names_are_slugs(tmp_path, decals):
    long = "data.feature-or-disk-png-" + ICONS.replace("https://", "https-").replace("/", "-").replace(".",
                                                                                                       "-").replace(
        "_", "-") + "-f353f2f1-a47e-439d-b9ca-020199162a79-png-60x-features-or-disk"
    head = f"data.smooth,{long},data.1,data.more-than-4,data.ring,data.ring+lens-or-arc,data.None"
    cells = "15,6122,T0,q,30,9.0,,,,,", "15,6122,T7,q,,,2,1,,,", "15,6122,T10,q,,,,,3,1,36", "16,6122,T0,q,,4,,,,,"
    text = f"subject_id,workflow_id,task,reducer,{head},data.aggregation_version\n"
    text += "".join(f"{line},4.1.0\n" for line in cells)
    (tmp_path / "r.csv").write_text(text)
    table = read_reductions(tmp_path / "r.csv", decals)
    assert votes(table) == {"smooth-or-featured-dr5_smooth": 30, "smooth-or-featured-dr5_featured-or-disk": 9,
                            "spiral-arm-count-dr5_1": 2, "spiral-arm-count-dr5_more-than-4": 1}
    rare = table.filter(like="rare").iloc[0]
    assert rare.tolist() == [4, 36, 1, 39] and table.filter(like="rare").iloc[1].sum() == 0


def test_reductions_of_caesar_number_their_answers(tmp_path, decals):
    (tmp_path / "r.csv").write_text("id,reducer_key,workflow_id,subject_id,subgroup,data.0,data.1\n"
                                    "7,T0-count,6122,15,_default,4,\n8,T0-count,6122,16,_default,,9\n")
    table = read_reductions(tmp_path / "r.csv", decals)
    assert table[DR5.columns[:2]].to_numpy().tolist() == [[4, 0], [0, 9]]


@pytest.mark.parametrize("text, message", [
    ("subject_id,task,data.smooth\n1,T0,\"__import__('os').system('x')\"\n", r"line 2: 'data.smooth' is \"__import__"),
    ("subject_id,task,data.smooth\n1,T0,0.5\n", "which is no count"),
                                           ("subject_id,task,smooth\n1,T0,1\n", "no column 'data.<answer>'"),
    ("subject_id,task,data.aggregation_version\n1,T0,4.1.0\n", "no column 'data.<answer>'"),
    ("subject_id,task,data.cat\n1,T0,3\n", "reductions of another workflow"),
    *((f"subject_id,task,{key},data.smooth\n1,T0,a,3\n1,T0,b,3\n", r"keep the rows of one reducer \(a, b\)")
      for key in ("reducer_key", "reducer"))])
def test_reductions_that_are_none(tmp_path, decals, text, message):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(InputError, match=message): read_reductions(tmp_path / "r.csv", decals)


# --- the whole way

@pytest.mark.parametrize("messy", [True, False])
def test_a_campaign_is_read_back_to_exactly_the_votes_that_were_drawn(tmp_path, messy):
    params = draw_galaxies(500, seed=1)
    _, drawn = draw_votes(*vote_model(params, DR5), DR5, volunteers=40, seed=2)
    truth = write_exports(pd.DataFrame(drawn, columns=DR5.columns), DR5, tmp_path, seed=3, messy=messy)
    table = campaign(tmp_path / "classifications.csv", tmp_path / "workflows.csv", tmp_path / "subjects.csv",
                     workflow="6122",
                     names="dr5", progress=False)
    table = table.set_index("subject_id").loc[truth.subject_id].reset_index()
    np.testing.assert_array_equal(table[DR5.columns].to_numpy(), drawn)
    for column in truth: assert table[column].tolist() == truth[column].tolist(), column
    assert check_catalog(table, "dr5").ok and table.url.str.startswith("https://").all()


def test_what_is_read_survives_a_file_and_trains(tmp_path):
    tree = Schema.from_text("shape: smooth, disk\nbar: yes, no <- shape_disk", "tiny")
    cast = pd.DataFrame({"id_str": ["a", "b"], "shape_smooth": [2, 0], "shape_disk": [3, 2], "bar_yes": [2, 0],
                         "bar_no": [1, 1]})
    write_exports(cast, tree, tmp_path / "zoo", messy=False)
    table = campaign(*(tmp_path / "zoo" / f"{name}.csv" for name in ("classifications", "workflows", "subjects")),
                     progress=False)
    table.to_parquet(tmp_path / "catalog.parquet")
    again = pd.read_parquet(tmp_path / "catalog.parquet")
    assert str(export_report(again)) == said(table)
    counted = {*cast.columns[1:], *(c for c in table if c.startswith("rare-features"))}
    assert set(Schema.from_dict(again.attrs["schema"]).columns) == counted
    assert read_catalog(tmp_path / "catalog.parquet").id_str.tolist() == table.id_str.tolist()


def test_votes_that_no_campaign_can_have_counted(tmp_path):
    cast = pd.DataFrame([dict.fromkeys(DR5.columns, 0)]).assign(**{"smooth-or-featured-dr5_smooth": 3,
                                                                   "how-rounded-dr5_round": 4})
    with pytest.raises(InputError, match="J000000 has 4 votes on how-rounded-dr5, but its .* lead only 3 people"):
        write_exports(cast, "dr5", tmp_path)
    with pytest.raises(InputError, match="votes are whole numbers"): write_exports(cast / 2, "dr5", tmp_path)
    with pytest.raises(InputError, match="lacks|has no votes"): write_exports(cast.iloc[:, 1:], "dr5", tmp_path)


def test_a_question_that_some_skip_keeps_its_own_count(tmp_path):
    cast = {"smooth-or-featured-dr5_featured-or-disk": 5, "disk-edge-on-dr5_no": 5, "has-spiral-arms-dr5_yes": 2,
            "has-spiral-arms-dr5_no": 1, "bar-dr5_weak": 5, "merging-dr5_none": 4, "spiral-winding-dr5_tight": 1}
    table = pd.DataFrame([dict.fromkeys(DR5.columns, 0) | cast])
    write_exports(table, "dr5", tmp_path)
    back = campaign(tmp_path / "classifications.csv", tmp_path / "workflows.csv", workflow="6122", names="dr5",
                    progress=False)
    assert votes(back) == cast and back.classifications[0] == 5
    with pytest.raises(InputError, match="no votes in it"): write_exports(table * 0, "dr5", tmp_path)


def test_export_report_of_a_table_without_one():
    with pytest.raises(InputError, match="has no report"): export_report(pd.DataFrame({"id_str": ["a"]}))
