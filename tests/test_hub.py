"Data sets of the hub: stored and streaming, their licence, what does not fit, and a machine without a network"
import json
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

datasets = pytest.importorskip("datasets")

from gz_nbdev import data
from gz_nbdev.data import (ArrayImages, HubImages, HubStream, View, check_images, decode, galaxy_dls, iter_batches,
                           load_hub, load_pixels, write_hub_folder)
from gz_nbdev.models import load_weights, save_weights
from gz_nbdev.predict import predict
from gz_nbdev.schema import InputError, Schema, get_schema
from gz_nbdev.simulate import simulate_survey
from gz_nbdev.store import Store
from gz_nbdev.train import fit_for, galaxy_learner

datasets.disable_progress_bars()
VIEW, REVISION = View(32), "1afe1f0" + "0" * 33
CARD = (Path(__file__).parent / "gz_desi_columns.txt").read_text().split()


@pytest.fixture(scope="module")
def desi():
    "48 galaxies with the columns of the card; each was seen in one campaign, as in the real table"
    survey = simulate_survey(n=48, size=40, seed=7, schema="gz_desi", progress=False)
    for k, campaign in enumerate(("dr12", "dr5", "dr8")):
        others = [c for c in get_schema("gz_desi").columns if f"-{campaign}_" not in c]
        survey.catalog.loc[survey.catalog.index % 3 == k, others] = 0
    return survey


@pytest.fixture(scope="module")
def folder(desi, tmp_path_factory):
    "The same as JPEGs, in the published form: train and test, several shards, a card with conditions"
    root = tmp_path_factory.mktemp("hub") / "gz_desi"
    split = np.where(desi.catalog.index < 40, "train", "test")
    failures = write_hub_folder(desi.catalog.assign(split=split), Jpegs(desi), root, "Galaxy Zoo DESI",
                                "cc-by-nc-sa-4.0", "We specifically require all models to be released.", shard_size=16)
    assert not len(failures)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    "Nothing is written to the user's cache, nothing asked of the network"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setenv("GZ_OFFLINE", "1")


class Jpegs:
    "A simulated survey as encoded bytes"
    def __init__(self, survey): self.ids, self.images = survey.catalog["id_str"].tolist(), survey.images
    def read(self, i):
        Image.fromarray(self.images[i].permute(1, 2, 0).numpy()).save(out := BytesIO(), "JPEG", quality=92)
        return out.getvalue()


def made_of(columns, pictures=None, **features):
    "A small data set in memory"
    n = len(next(iter(columns.values())))
    pictures = [Jpegs.read(SimpleNamespace(images=torch.full((1, 3, 40, 40), 5 * i % 250, dtype=torch.uint8)), 0)
                for i in range(n)] if pictures is None else pictures
    cells = [p if isinstance(p, dict) else dict(bytes=p, path=None) for p in pictures]
    kinds = {c: datasets.Value(features.get(c, "string" if isinstance(v[0], (str, type(None))) else "int32"))
             for c, v in columns.items()}
    features = datasets.Features({"image": datasets.Image(), **kinds})
    return datasets.Dataset(pa.Table.from_pydict({"image": cells, **columns}, schema=features.arrow_schema))


def loaded(folder, **kwargs): return load_hub(folder, **kwargs)


def test_datasets_is_not_needed_to_import():
    code = "import sys, gz_nbdev.data; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- the published form

def test_the_folder_has_the_form_of_the_card(folder):
    "What datasets itself makes of it: the features of the card, in their order; both splits; the licence"
    own = datasets.load_dataset(str(folder))
    kinds = {name: str(getattr(f, "dtype", f)) for name, f in own["train"].features.items()}
    assert list(kinds)[:4] == ["image", "id_str", "ra", "dec"] and set(list(kinds)[4:]) == set(CARD) and len(kinds) == 102
    assert isinstance(own["train"].features["image"], datasets.Image) and kinds["ra"] == kinds["dec"] == "float64"
    assert {kinds[c] for c in CARD} == {"int32"} and kinds["id_str"] == "string"
    assert {name: len(part) for name, part in own.items()} == {"train": 40, "test": 8}
    assert sorted(p.name for p in (folder / "data").iterdir())[-1] == "train-00002-of-00003.parquet"
    assert "license: cc-by-nc-sa-4.0" in (folder / "README.md").read_text()


def test_all_98_columns_stored_and_streaming(folder, desi):
    stored, stream = loaded(folder), loaded(folder, streaming=True)
    batches = list(iter_batches(stream, VIEW, batch_size=16))
    assert stored.ids == stream.ids == desi.catalog["id_str"][:40].tolist()
    for source in (stored, stream):
        catalog = source.catalog
        assert Schema.from_columns(list(catalog)).name == "gz_desi"
        assert catalog.attrs["card"]["licence"] == "cc-by-nc-sa-4.0"
        pd.testing.assert_frame_equal(catalog[desi.catalog.columns], desi.catalog[:40], check_dtype=False)
    assert [len(ids) for ids, _ in batches] == [16, 16, 8]
    direct = torch.stack([decode(Jpegs.read(desi, i), VIEW) for i in range(40)])
    assert torch.equal(torch.cat([x for _, x in batches]), direct)
    assert torch.equal(load_pixels(stored, VIEW, progress=False).pixels, direct)


@pytest.mark.parametrize("streaming", [False, True])
def test_trained_predicted_written_and_read_again(folder, desi, tmp_path, streaming):
    "The whole road on 98 columns, from a stored data set and from a stream"
    source = loaded(folder, streaming=streaming)
    pixels = load_pixels(source, VIEW, cache_dir=tmp_path / "cache", progress=False)
    dls = galaxy_dls(source.catalog, pixels, bs=16, device="cpu")
    assert dls.c == 98 and dls.card["licence"] == "cc-by-nc-sa-4.0"
    learn = galaxy_learner(dls, "resnet10t")
    with learn.no_bar(), learn.no_logging(): history = fit_for(learn, epochs=1)
    assert np.isfinite(pd.DataFrame(history["history"]).select_dtypes("number").to_numpy()).all()
    weights = load_weights(save_weights(learn.model, tmp_path / "weights", dls.view, dls.schema, about=str(dls.card)))
    judged = loaded(folder, split="test", streaming=streaming)
    table = predict(weights, judged, tmp_path / "out", turns=1, device="cpu", progress=False).read()
    assert table["id_str"].tolist() == desi.catalog["id_str"][40:].tolist() == judged.ids
    assert all(f"{c}_fraction" in table for c in CARD)
    again = Store(tmp_path / "out").read()
    pd.testing.assert_frame_equal(again, table)
    for q in get_schema("gz_desi").questions:
        assert np.allclose(again[[f"{c}_fraction" for c in q.columns]].sum(axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_prediction_that_stopped_goes_on(folder, tmp_path, streaming):
    "Those who are done are not decoded again, and are in the ids all the same"
    source = loaded(folder, streaming=streaming)
    done, seen = set(f"SIM000007-{i:07d}" for i in range(0, 40, 2)), []
    for ids, _ in iter_batches(source, VIEW, batch_size=7, done=lambda ids: np.array([i in done for i in ids])): seen += ids
    assert not done & set(seen) and sorted(seen + list(done)) == sorted(source.ids)


# ---- formats and siblings

@pytest.mark.parametrize("form", ["torch", "numpy", "pandas", "arrow", None])
def test_any_format_gives_the_stored_bytes(form, desi):
    dataset = made_of(dict(id_str=["a", "b"]), [Jpegs.read(desi, 0), Jpegs.read(desi, 1)])
    for these in (dataset.with_format(form), dataset.with_transform(lambda rows: {"image": [None] * 2})):
        assert HubImages(these).read(1) == Jpegs.read(desi, 1)
    stream = dataset.to_iterable_dataset()
    stream = HubImages(stream if form == "pandas" else stream.with_format(form))   # streams know no pandas
    assert isinstance(stream, HubStream)
    assert [picture for _, picture in stream.pictures()] == [Jpegs.read(desi, 0), Jpegs.read(desi, 1)]


@pytest.mark.parametrize("plain", [True, False])
def test_parquet_that_datasets_did_not_write(tmp_path, desi, plain):
    "Bytes, or {bytes, path}, without a word about features"
    picture = Jpegs.read(desi, 0)
    cells = [picture] * 2 if plain else [dict(bytes=picture, path="x.jpg")] * 2
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(dict(image=cells, id_str=["a", "b"])), tmp_path / "data" / "train-0.parquet")
    for streaming in (False, True):
        source = loaded(tmp_path, streaming=streaming)
        assert next(iter_batches(source, VIEW))[0] == ["a", "b"] and source.licence == "not stated"


@pytest.mark.parametrize("schema, id_column", [("gz2", "dr7objid"), ("candels", "id_str"), ("hubble", "iauname"),
                                               ("ukidss", "name"), ("jwst", "galaxy_id"), ("gz2+gz_desi", "id_str")])
@pytest.mark.parametrize("streaming", [False, True])
def test_sibling_data_sets(schema, id_column, streaming):
    "Other campaigns, other names of the id; one of 18 digits is the same to the last"
    columns = get_schema(schema).columns
    ids = [587722981741363294 + i for i in range(3)] if id_column == "dr7objid" else ["x1", "x2", "x3"]
    dataset = made_of({id_column: ids, **{c: [i, i, 1] for i, c in enumerate(columns)}}, **{"dr7objid": "int64"})
    source = HubImages(dataset.to_iterable_dataset() if streaming else dataset)
    list(iter_batches(source, VIEW))
    assert source.ids == source.catalog["id_str"].tolist() == [str(i) for i in ids]
    assert set(Schema.from_columns(list(source.catalog)).columns) == set(columns)
    assert source.catalog[columns].to_numpy().tolist() == [[i if r < 2 else 1 for i in range(len(columns))] for r in range(3)]


def test_an_id_column_of_ones_own(desi):
    dataset = made_of(dict(id_str=["a", "a"], telescope_key=["p", "q"]))
    for these in (dataset, dataset.to_iterable_dataset()):
        source = HubImages(these, id_column="telescope_key")
        assert [ids for ids, _ in iter_batches(source, VIEW)] == [["p", "q"]]
        assert source.catalog["id_str"].tolist() == ["p", "q"]


def test_missing_votes_are_nobody_asked():
    dataset = made_of({"id_str": ["a", "b"], **{c: [None, 3] for c in get_schema("gz2").columns}},
                      **{c: "int32" for c in get_schema("gz2").columns})
    assert HubImages(dataset).catalog[get_schema("gz2").columns].to_numpy().tolist() == [[0] * 30, [3] * 30]


# ---- pictures that cannot be used

@pytest.mark.parametrize("streaming", [False, True])
def test_bad_pictures_fail_under_their_own_id(streaming, desi, tmp_path):
    "Nothing, half a JPEG, a page of text, a path to a real file: each set aside, none followed, no neighbour in its place"
    good = [Jpegs.read(desi, i) for i in range(4)]
    (tmp_path / "real.jpg").write_bytes(good[0])
    pictures = [good[0], dict(bytes=None, path=None), good[1][:300], b"<html>", good[2],
                dict(bytes=None, path=str(tmp_path / "real.jpg")), good[3]]
    dataset = made_of(dict(id_str=list("abcdefg")), pictures)
    source, failures = HubImages(dataset.to_iterable_dataset() if streaming else dataset), []
    ids, x = next(iter_batches(source, VIEW, failures=failures))
    assert ids == ["a", "e", "g"] and torch.equal(x, torch.stack([decode(good[i], VIEW) for i in (0, 2, 3)]))
    assert [id for id, _ in failures] == ["b", "c", "d", "f"] and source.ids == list("abcdefg")
    assert "missing bytes" in failures[0][1] and "web page" in failures[2][1] and "missing bytes" in failures[3][1]
    assert load_pixels(source, VIEW, progress=False).failures["id_str"].tolist() == ["b", "c", "d", "f"]
    report = check_images(source)
    assert report.ok and "3 of 7 pictures opened can be used" in str(report)


def test_writing_leaves_out_what_cannot_be_read(desi, tmp_path):
    class Some(Jpegs):
        def read(self, i):
            if i == 1: raise data.ImageError("missing file: 'b'")
            return super().read(i)
    failures = write_hub_folder(desi.catalog[:4], Some(SimpleNamespace(catalog=desi.catalog[:3], images=desi.images)),
                                tmp_path / "x", "T", "mit")
    assert failures["id_str"].tolist() == desi.catalog["id_str"][[3, 1]].tolist()
    assert len(loaded(tmp_path / "x")) == 2 and "num_examples: 2" in (tmp_path / "x" / "README.md").read_text()
    with pytest.raises(InputError, match="holds a data set already"):
        write_hub_folder(desi.catalog[:4], Jpegs(desi), tmp_path / "x", "T", "mit")


@pytest.fixture
def four():
    "Four pictures, known by their brightness"
    return ArrayImages(list("abcd"), torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 32, 32).clone())


@pytest.mark.parametrize("shard_size", [2, 4])
def test_blank_cells_are_written_as_blanks(four, tmp_path, shard_size):
    table = pd.DataFrame({"id_str": list("abcd"), "note": ["x", np.nan, np.nan, np.nan], "z": [1., np.nan, 3., 4.],
                          "n": pd.array([1, None, 3, 4], "Int64"), "kind": pd.Categorical(["u", None, "v", "u"]),
                          "seen": pd.to_datetime(["2020-01-01", None, None, None]), "none": [np.nan] * 4,
                          "ring_yes": [1, np.nan, 3, 0], "ring_no": [3., 2., np.nan, np.nan]})
    assert not len(write_hub_folder(table, four, tmp_path / "x", "T", "cc0-1.0", shard_size=shard_size))
    back = loaded(tmp_path / "x").table.to_pandas()
    assert back.note.isna().tolist() == [False, True, True, True] and back.note[0] == "x"
    assert back.z.isna().tolist() == [False, True, False, False] and back.n.isna().tolist() == [False, True, False, False]
    assert back.seen[0] == pd.Timestamp("2020-01-01") and back.seen[1:].isna().all() and back.none.isna().all()
    assert back.kind.fillna("").tolist() == ["u", "", "v", "u"]
    assert back.ring_yes.tolist() == [1, 0, 3, 0] and back.ring_no.tolist() == [3, 2, 0, 0]   # nobody was asked
    assert back.ring_yes.dtype == back.ring_no.dtype == np.int32


def test_what_a_stopped_run_left_is_not_in_the_data_set(four, tmp_path):
    class Broken(ArrayImages):
        def read(self, i):
            if i == 2: raise RuntimeError("the power went")
            return super().read(i)
    table, root = pd.DataFrame({"id_str": list("abcd")}), tmp_path / "x"
    with pytest.raises(RuntimeError): write_hub_folder(table, Broken(four.ids, four.images), root, "T", "mit", shard_size=2)
    write_hub_folder(table, four, root, "T", "mit")
    assert loaded(root).ids == list("abcd")
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*")) == ["README.md", "data", "data/train-00000-of-00001.parquet"]


def test_files_of_somebody_else_are_left_alone(four, tmp_path):
    (tmp_path / "data").mkdir()
    mine = tmp_path / "data" / "train-00000-of-00002.parquet"
    mine.write_bytes(b"mine")
    with pytest.raises(InputError, match="give a new folder"):
        write_hub_folder(pd.DataFrame({"id_str": list("abcd")}), four, tmp_path, "T", "mit")
    assert mine.read_bytes() == b"mine" and [p.name for p in tmp_path.rglob("*")] == ["data", mine.name]


def test_ids_that_are_whole_numbers_find_their_pictures(four, tmp_path):
    source = ArrayImages([11, 12, 13, 14], four.images)
    assert not len(write_hub_folder(pd.DataFrame({"id_str": [14, 11]}), source, tmp_path / "x", "T", "mit"))
    back = loaded(tmp_path / "x")
    assert back.ids == ["14", "11"] and decode(back.read(0), VIEW).unique().tolist() == [3]


def test_every_galaxy_needs_a_split(four, tmp_path):
    table = pd.DataFrame({"id_str": list("abcd"), "split": ["train", np.nan, "test", "test"]})
    with pytest.raises(InputError, match="'b' has no split"): write_hub_folder(table, four, tmp_path / "x", "T", "mit")
    with pytest.raises(InputError, match="letters and digits, not 'a/b'"):
        write_hub_folder(table.assign(split=["train", "train", "train", "a/b"]), four, tmp_path / "x", "T", "mit")
    assert not (tmp_path / "x").exists()


# ---- streams

def test_a_stream_has_no_length_and_grows(desi):
    dataset = made_of(dict(id_str=[f"g{i}" for i in range(300)], ra=[float(i) for i in range(300)]), ra="float64")
    stream = HubImages(dataset.to_iterable_dataset())
    with pytest.raises(TypeError): len(stream)
    assert stream.ids == [] and not hasattr(stream, "__len__")
    with pytest.raises(InputError, match="Nothing of this stream was read yet"): stream.catalog
    with pytest.raises(InputError, match="done="): next(iter_batches(stream, VIEW, indices=[3]))
    batches = iter_batches(stream, VIEW, batch_size=8, threads=1)
    assert next(batches)[0] == [f"g{i}" for i in range(8)]
    assert 8 <= len(stream.ids) <= 192 and len(stream.catalog) == len(stream.ids)   # a little ahead, and no further
    list(batches)
    assert len(stream.ids) == 300 and stream.catalog["ra"].tolist() == list(range(300))
    assert sum(len(ids) for ids, _ in iter_batches(stream, VIEW)) == 300 and len(stream.ids) == 300   # a second pass


def test_the_cache_of_a_stream_is_used_again(folder, tmp_path, monkeypatch):
    first = loaded(folder, streaming=True)
    cache = load_pixels(first, VIEW, cache_dir=tmp_path, progress=True)
    assert cache.card["licence"] == "cc-by-nc-sa-4.0" and cache.verify(first) == []
    monkeypatch.setattr(data, "_decode_into", None)   # to decode would fail
    again = loaded(folder, streaming=True)
    second = load_pixels(again, VIEW, cache_dir=tmp_path)
    assert torch.equal(second.pixels, cache.pixels) and second.card == cache.card
    pd.testing.assert_frame_equal(again.catalog, first.catalog)
    assert again.ids == first.ids


def test_another_stream_has_another_cache(folder):
    prints = {loaded(folder, streaming=True).fingerprint() for _ in range(2)}
    dataset = loaded(folder, streaming=True).dataset
    for other in (dataset.take(10), dataset.take(11), dataset.skip(1), dataset.shuffle(seed=1, buffer_size=9)):
        prints.add(HubImages(other).fingerprint())
    prints.add(loaded(folder, split="test", streaming=True).fingerprint())
    assert len(prints) == 6


def test_a_cache_whose_pixels_were_cut_is_made_anew(folder, tmp_path):
    cache = load_pixels(loaded(folder, streaming=True), VIEW, cache_dir=tmp_path, progress=False)
    pixels = cache.pixels.clone()
    (cache.folder / "pixels.u8").write_bytes(b"0")
    assert torch.equal(load_pixels(loaded(folder, streaming=True), VIEW, cache_dir=tmp_path, progress=False).pixels, pixels)


@pytest.mark.parametrize("ids, message", [(["a", "b", "a"], "stand more than once"), (["a", None, "c"], "the id in row 1"),
                                          (["a", "", "c"], "the id in row 1")])
def test_ids_that_name_no_galaxy(ids, message):
    dataset = made_of(dict(id_str=ids))
    with pytest.raises(InputError, match=message): HubImages(dataset)
    with pytest.raises(InputError, match=message): list(HubImages(dataset.to_iterable_dataset()).pictures())


def test_an_id_that_comes_again_much_later():
    stream = HubImages(made_of(dict(id_str=[f"g{i}" for i in range(99)] + ["g3"])).to_iterable_dataset())
    with pytest.raises(InputError, match="'g3' twice .row 99 is the second"): list(stream.pictures())


def test_ids_that_were_floats():
    dataset = made_of(dict(objid=[1.5e17, 2.]), objid="float64")
    for these in (dataset, dataset.to_iterable_dataset()):
        with pytest.raises(InputError, match="a float keeps 16 digits"): list(iter_batches(HubImages(these), VIEW))


def test_a_stream_that_breaks_off():
    def rows():
        for i in range(100):
            if i == 80: raise OSError("connection reset")
            yield dict(image=dict(bytes=b"x", path=None), id_str=f"g{i}")
    features = datasets.Features(image=datasets.Image(), id_str=datasets.Value("string"))
    stream = HubImages(datasets.IterableDataset.from_generator(rows, features=features))
    with pytest.raises(InputError, match="broke off after 64 galaxies: .*connection reset.*run the same call again"):
        list(stream.pictures())


def test_a_stream_whose_pictures_are_encoded_twice_is_told(folder):
    stream = datasets.load_dataset("parquet", data_files=str(folder / "data/test-*"), split="train", streaming=True)
    with pytest.warns(UserWarning, match="Cast first"): HubImages(stream.filter(lambda row: row["ra"] > 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HubImages(stream.take(3))
        cast = stream.cast_column("image", datasets.Image(decode=False)).filter(lambda row: row["ra"] > 0)
        stored = {r["id_str"]: r["image"]["bytes"] for r in pq.read_table(folder / "data").to_pylist()}
        assert all(stored[id] == picture for id, picture in HubImages(cast).pictures())
    with pytest.raises(InputError, match="give features="): HubImages(stream.map(lambda row: {"w": 1}))


# ---- what does not fit

def test_what_is_no_data_set(desi):
    dataset = made_of(dict(id_str=["a"]))
    with pytest.raises(InputError, match=r"as in dataset\['test'\]"): HubImages(datasets.DatasetDict(test=dataset))
    with pytest.raises(InputError, match="not DataFrame"): HubImages(desi.catalog)
    with pytest.raises(InputError, match="image='image' does"): HubImages(dataset, image="picture")
    with pytest.raises(InputError, match="encoded pictures, but holds Value"): HubImages(dataset, image="id_str")
    with pytest.raises(InputError, match="did you mean 'id_str'"): HubImages(dataset, id_column="id_st")
    with pytest.raises(InputError, match="add_column"): HubImages(made_of(dict(votes=[1])))
    with pytest.raises(InputError, match="no column does"): HubImages(dataset.remove_columns("image"))
    pixels = datasets.Dataset.from_dict(dict(image=[[[0, 0], [0, 0]]], id_str=["a"]))
    with pytest.raises(InputError, match="should hold encoded pictures"): HubImages(pixels)


def test_a_data_set_without_votes_can_be_looked_at_and_not_learnt():
    source = HubImages(made_of(dict(id_str=["a", "b"], telescope=["x", "y"])))
    with pytest.raises(InputError): galaxy_dls(source.catalog, source, view=VIEW, progress=False)
    assert len(next(iter_batches(source, VIEW))[0]) == 2


@pytest.mark.parametrize("name", ["../secrets", "a/../b", "C:\\data", r"\\host\share", "https://example.org/x", "a/b/c",
                                  "hf://datasets/a/b", "", "/no/such/folder", "a b"])
def test_names_that_are_none(name):
    with pytest.raises(InputError, match="is no name of a hub data set"): load_hub(name)


@pytest.mark.parametrize("revision", ["main", "1afe1f0", "0" * 41, "../x"])
def test_a_revision_can_not_change(revision):
    with pytest.raises(InputError, match="40 hexadecimal digits"): load_hub("mwalmsley/gz_desi", revision=revision)


def folder_with(root, readme, ids=("a", "b")):
    (root / "data").mkdir(exist_ok=True)
    pq.write_table(pa.table(dict(image=[b"x"] * len(ids), id_str=list(ids))), root / "data" / "train-0.parquet")
    (root / "README.md").write_text(readme)
    return root


def test_folders_that_do_not_fit(folder, tmp_path):
    with pytest.raises(InputError, match="no split 'valid'"): loaded(folder, split="valid")
    with pytest.raises(InputError, match="did you mean 'train'"): loaded(folder, split="trian")
    with pytest.raises(InputError, match="no configuration 'tiny'"): loaded(folder, config="tiny")
    with pytest.raises(InputError, match="There is no folder"): load_hub(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no parquet files"): load_hub(tmp_path)
    outside = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n---\n"
    for path in ("../*.parquet", "/etc/*"):
        folder_with(tmp_path, outside.format(path))
        with pytest.raises(InputError, match="names files outside it"): load_hub(tmp_path)
    folder_with(tmp_path, "")
    (tmp_path / "data" / "train-0.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match="train-0.parquet is not whole parquet"): load_hub(tmp_path)



def test_a_card_runs_nothing(tmp_path):
    "I50: YAML that would make an object is text that cannot be read, or no licence; it is never carried out"
    flag = tmp_path / "ran"
    root = folder_with(tmp_path, f"---\nlicense: !!python/object/apply:os.system ['touch {flag}']\n---\n")
    try: load_hub(root)
    except InputError as error: assert "cannot be read" in str(error)
    assert not flag.exists()


# ---- licence

def test_licence_and_conditions_are_shown_before_use(folder, capsys):
    source = load_hub(folder)
    shown = capsys.readouterr().out
    for text in (shown, repr(source), source._repr_html_()):
        assert "cc-by-nc-sa-4.0" in text and "We specifically require all models" in text
    assert source.licence == "cc-by-nc-sa-4.0" and json.loads(json.dumps(source.card)) == source.card


def test_the_conditions_of_the_real_card():
    "The line on the licence of mwalmsley/gz_desi, and what a gated data set asks"
    text = ("---\nlicense: cc-by-nc-sa-4.0\nextra_gated_prompt: Say who you are.\n---\n# GZ\n- **License:** "
            "[cc-by-nc-sa-4.0](https://creativecommons.org/licenses/by-nc-sa/4.0/deed.en). We specifically require **all "
            "models trained on these datasets to be released as source code by publication**.\n\nOther words.\n")
    card, _ = data._read_card(text, "x")
    assert card["licence"] == "cc-by-nc-sa-4.0" and "**" not in card["conditions"]
    assert card["conditions"].startswith("License: cc-by-nc-sa-4.0 (https://creativecommons.org") and \
        "released as source code by publication" in card["conditions"] and card["conditions"].endswith("Say who you are.")


def test_a_card_is_shown_as_text(tmp_path):
    source = load_hub(folder_with(tmp_path, "---\nlicense: <script>x</script>\n---\n"))
    assert "<script>" not in source._repr_html_() and "&lt;script&gt;" in source._repr_html_()


# ---- the hub, and no network

def test_offline_says_what_to_do():
    with pytest.raises(InputError, match="hf download mwalmsley/gz_desi --repo-type dataset") as error:
        load_hub("mwalmsley/gz_desi", revision=REVISION)
    assert "copy that folder here" in str(error.value)


def cached(folder, root, revision):
    "What `datasets` keeps of a data set that it downloaded: config, version, revision"
    from datasets.packaged_modules.parquet.parquet import Parquet
    builder = Parquet(cache_dir=str(root), dataset_name="gz_desi", hash=revision,
                      data_files={"train": [str(f) for f in sorted((folder / "data").glob("train-*"))]})
    builder.download_and_prepare()
    (root / "gz_desi").rename(root / "mwalmsley___gz_desi")
    next((root / "mwalmsley___gz_desi").glob("default-*")).rename(root / "mwalmsley___gz_desi" / "default")


def test_offline_a_copy_in_the_cache_serves_at_its_own_revision_alone(folder, desi, tmp_path):
    cached(folder, tmp_path, REVISION)
    for revision in (REVISION, None):
        source = load_hub("mwalmsley/gz_desi", revision=revision, folder=tmp_path)
        assert source.card["revision"] == REVISION and source.ids == desi.catalog["id_str"][:40].tolist()
    stream = load_hub("mwalmsley/gz_desi", folder=tmp_path, streaming=True)
    assert len(list(stream.pictures())) == 40
    with pytest.raises(InputError, match="is not on this machine"):
        load_hub("mwalmsley/gz_desi", revision="f" * 40, folder=tmp_path)


def test_a_name_is_pinned_to_what_it_means_today(folder, tmp_path, monkeypatch, capsys):
    "The revision that the hub names is the one that is loaded, said, and kept in the card"
    import huggingface_hub
    monkeypatch.setenv("GZ_OFFLINE", "0")
    asked = []
    real = datasets.load_dataset
    def info(self, name, revision=None, timeout=None): return SimpleNamespace(sha=REVISION)
    def readme(*args, revision, **kwargs): return asked.append(revision) or str(folder / "README.md")
    def load(name, config, revision, **kwargs): return asked.append(revision) or real(str(folder), **kwargs)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", readme)
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = load_hub("mwalmsley/gz_desi", folder=tmp_path)
    assert asked == [REVISION] * 2 and source.card["revision"] == REVISION and REVISION in capsys.readouterr().out
    assert source.card["homepage"] == "https://huggingface.co/datasets/mwalmsley/gz_desi"


@pytest.mark.parametrize("kind, message", [
    ("GatedRepoError", "is gated: ask for access"), ("RepositoryNotFoundError", "There is no data set"),
    ("RevisionNotFoundError", "has no revision"), ("TimeoutError", "cannot be reached"), ("ValueError", "cannot be loaded")])
def test_what_the_hub_may_answer(kind, message, tmp_path, monkeypatch):
    import huggingface_hub
    monkeypatch.setenv("GZ_OFFLINE", "0")
    error = type(kind, (ValueError if kind == "ValueError" else Exception,), {})("odd")
    def answer(*args, **kwargs): raise error
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", answer)
    with pytest.raises(InputError, match=message): load_hub("mwalmsley/gz_desi", revision=REVISION, folder=tmp_path)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install gz_nbdev\[hub\]"): load_hub("mwalmsley/gz_desi")
