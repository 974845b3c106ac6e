"Search against brute force, indexes against damage and mistaken identity, and what a person is told"

import json
import os
import shutil
import warnings
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

import gz_nbdev.search as search_module
from gz_nbdev.data import ArrayImages, FolderImages, View
from gz_nbdev.models import GalaxyModel, create_encoder, load_weights, save_weights
from gz_nbdev.represent import represent
from gz_nbdev.schema import InputError
from gz_nbdev.search import GalaxyIndex, neighbour_sheet, precision_at_k, search_table
from gz_nbdev.store import Store, write_parquet

needs_faiss = pytest.mark.skipif(find_spec("faiss") is None, reason="the extra `search` is not installed")
RNG = np.random.default_rng(0)
N, D = 3000, 20
VECTORS = (RNG.normal(size=(N, 8)) @ RNG.normal(size=(8, D)) + 0.2 * RNG.normal(size=(N, D)) + 3).astype(np.float32)
IDS = [f"J{i:04d}" for i in range(N)]
PLACES = pd.DataFrame(dict(id_str=IDS, ra=RNG.uniform(0, 360, N), dec=RNG.uniform(-80, 80, N)))


def exact(vectors=VECTORS, ids=None, catalog=None, **settings) -> GalaxyIndex:
    "An exact index in memory"
    ids = IDS[: len(vectors)] if ids is None else ids
    return GalaxyIndex((ids, vectors), catalog, device="cpu", engine="exact", **settings)


def approximate(table, **settings) -> GalaxyIndex:
    "An index with lists"
    return GalaxyIndex(table, device="cpu", engine="approximate", **settings)


def parquet(path, vectors=VECTORS, ids=IDS):
    "A table of representations, in one file"
    return write_parquet(path, pd.DataFrame({"id_str": ids}), {"weights": "w1"}, vectors)


@pytest.fixture
def no_faiss(monkeypatch):
    "A machine without the extra"
    monkeypatch.setattr(search_module, "_has_faiss", lambda: False)


# The exact engine

@pytest.mark.parametrize("n,k", [(2, 1), (7, 6), (63, 10), (64, 10), (1023, 900), (17_000, 10), (33_000, 3)])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_exact_is_brute_force(n, k, metric):
    x = np.random.default_rng(n).normal(size=(n, 5)) + 1
    distance, rows = exact(x, range(n), metric=metric).neighbours(x[:20], k)
    prepared = x - x.mean(0)
    every = pairwise_distances(prepared[:20], prepared, metric=metric)
    np.testing.assert_allclose(distance, np.sort(every, 1)[:, :k], atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(every, rows, 1), np.sort(every, 1)[:, :k], atol=2e-6)


def test_far_from_zero_nothing_is_lost():
    "Single precision keeps 7 digits, and |x|^2 - 2qx would use them up"
    x = np.random.default_rng(1).normal(size=(2000, 10)).astype(np.float32) + 1000
    rows = exact(x, metric="euclidean").neighbours(x[:100], 10)[1]
    np.testing.assert_array_equal(rows, pairwise_distances(x[:100].astype(float), x.astype(float)).argsort(1)[:, :10])


def test_half_precision_is_searched_as_it_is():
    rows = exact(VECTORS.astype(np.float16)).neighbours(VECTORS[:200], 5)[1]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(rows, exact().neighbours(VECTORS[:200], 5)[1])]) > 0.97


def test_components_are_those_of_pca():
    index = exact(metric="euclidean", components=4)
    prepared = PCA(4, random_state=0).fit_transform(VECTORS)
    every = pairwise_distances(prepared[:30], prepared)
    np.testing.assert_allclose(index.neighbours(VECTORS[:30], 5)[0], np.sort(every, 1)[:, :5], atol=1e-3)
    with pytest.raises(InputError, match="400 components of 20 features"): exact(components=400)


def test_the_order_of_the_table_does_not_matter():
    order = np.random.default_rng(2).permutation(N)
    other = GalaxyIndex(([IDS[i] for i in order], VECTORS[order]), device="cpu")
    a, b = (index.by_id(["J0007", "J2999"], 10) for index in (exact(), other))
    assert a.id_str.tolist() == b.id_str.tolist()


# What is left out

def test_itself_and_copies_are_never_shown():
    copies = np.vstack([VECTORS, VECTORS[:1], VECTORS[50:51], VECTORS[50:51] * (1 + 1e-7)])
    index = exact(copies, [*IDS, "copy0", "copy50", "copy50b"])
    assert not set(index.by_id("J0000", 50).id_str) & {"J0000", "copy0"}
    found = index.by_vector(VECTORS[50], 30).id_str.tolist()
    assert found[0] == "J0050" and not {"copy50", "copy50b"} & set(found)   # a copy of a better result


def test_many_copies_still_leave_k():
    index = exact(np.vstack([np.repeat(VECTORS[:1], 500, 0), VECTORS[1:40]]), range(539))
    found = index.by_id("3", 20)
    assert len(found) == 20 and found.id_str.astype(int).min() >= 500
    assert len(index.by_id("3", 100)) == 39   # there are no more


@pytest.mark.parametrize("ra,dec,other", [
    (0, 0, (359.9995, 0)), (10, 89.9999, (190, 89.9999)), (180, -45, (180.002, -45))])
def test_neighbours_on_the_sky_are_left_out(ra, dec, other):
    vectors = np.vstack([VECTORS[:30], VECTORS[:1] + 0.01, VECTORS[:1] + 0.011])
    places = pd.DataFrame(dict(id_str=[*IDS[:30], "near", "nan"], ra=[ra, *range(100, 129), other[0], np.nan],
                               dec=[dec, *[30] * 29, other[1], np.nan]))
    index = exact(vectors, places.id_str, places)
    assert {"near", "nan"} <= set(index.by_id("J0000", 3).id_str)
    found = index.by_id("J0000", 3, min_separation=10)
    assert "near" not in set(found.id_str) and "nan" in set(found.id_str)   # of an unknown position nothing can be said
    assert list(found.columns) == ["query", "id_str", "rank", "distance", "ra", "dec"]
    with pytest.raises(InputError, match="min_separation needs positions"): exact().by_id("J0000", min_separation=10)


def test_of_close_results_the_better_is_shown():
    places = PLACES.copy()
    places.loc[1, ["ra", "dec"]] = places.loc[2, ["ra", "dec"]].to_numpy()
    vectors = VECTORS.copy()
    vectors[1], vectors[2] = vectors[0] + 0.01, vectors[0] + 0.02
    index = exact(vectors, catalog=places)
    assert index.by_id("J0000", 5).id_str.tolist()[:2] == ["J0001", "J0002"]
    assert "J0002" not in index.by_id("J0000", 5, min_separation=5).id_str.tolist()


# Ways to ask

def test_position_finds_the_galaxy_there():
    index = exact(catalog=PLACES)
    ra, dec = PLACES.loc[5, ["ra", "dec"]]
    pd.testing.assert_frame_equal(index.by_position(ra, dec + 2 / 3600, 4), index.by_id("J0005", 4))
    with pytest.raises(InputError, match=r"No galaxy within 1 arcsec .* the nearest, J0005, is 2.0 arcsec"):
        index.by_position(ra, dec + 2 / 3600, 4, radius=1)
    with pytest.raises(InputError, match="not on the sky"): index.by_position(10, 95)
    with pytest.raises(InputError, match="no ra and dec"): exact().by_position(10, 5)


def test_examples_move_away_from_negatives():
    index = exact(metric="euclidean")
    good, bad = VECTORS[[3, 4, 5]].astype(float), VECTORS[[9, 10]].astype(float)
    query = good.mean(0) + 0.2 * (good.mean(0) - bad.mean(0))
    every = np.linalg.norm(VECTORS - query, axis=1)
    every[[3, 4, 5, 9, 10]] = np.inf
    found = index.by_examples(["J0003", "J0004", "J0005"], ["J0009", "J0010"], 6)
    assert found.id_str.tolist() == [IDS[i] for i in every.argsort()[:6]]
    np.testing.assert_allclose(found.distance, np.sort(every)[:6], rtol=1e-4)
    with pytest.raises(InputError, match="'J0003' is both"): index.by_examples(["J0003"], ["J0003"])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_examples_and_vectors_depend_on_no_zero(metric):
    shifted = exact(VECTORS + 7, metric=metric).by_examples(["J0003", "J0004"], ["J0009"], 8)
    assert shifted.id_str.tolist() == exact(metric=metric).by_examples(["J0003", "J0004"], ["J0009"], 8).id_str.tolist()


def test_another_table_asks(tmp_path):
    index = GalaxyIndex(parquet(tmp_path / "a.parquet"), device="cpu")
    other = parquet(tmp_path / "b.parquet", VECTORS[:3], ["J0000", "new", "J0002"])
    found = index.by_table(other, 2).set_index(["query", "rank"]).id_str
    assert found["new", 1] == "J0001"   # the same vector, and not known to be the same galaxy
    assert found["J0000", 1] == index.by_id("J0000", 1).id_str[0]
    foreign = write_parquet(tmp_path / "c.parquet", pd.DataFrame({"id_str": IDS[:3]}), {"weights": "w2"}, VECTORS[:3])
    with pytest.raises(InputError, match="was made with weights w1, .*c.parquet with w2: their numbers mean different"):
        index.by_table(foreign)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    "Pictures, weights and their store; and weights of another encoder"
    folder = tmp_path_factory.mktemp("survey")
    torch.manual_seed(0)
    images = torch.randint(0, 255, (12, 3, 16, 16), dtype=torch.uint8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    source = ArrayImages([f"S{i}" for i in range(12)], images)
    folders = [save_weights(GalaxyModel(create_encoder("resnet10t"), 1), folder / name, View(32)) for name in "ab"]
    a, b = map(load_weights, folders)
    return source, a, b, represent(a, source, folder / "store", turns=1, progress=False)


def test_picture_finds_itself(survey):
    source, weights, other, store = survey
    index = GalaxyIndex(store, device="cpu")
    assert index.by_picture(weights, ArrayImages(["x"], source.images[4:5]), 1).id_str[0] == "S4"
    assert "S4" not in index.by_picture(weights, ArrayImages(["S4"], source.images[4:5]), 11).id_str.tolist()
    with pytest.raises(InputError, match="the network b with"): index.by_picture(other, source)
    with pytest.raises(InputError, match="The picture cannot be used: empty file"): index.by_picture(weights, b"")
    with pytest.raises(InputError, match="looks like a web page"): index.by_picture(weights, b"<html>" + b"x" * 99)
    wide = GalaxyIndex((["a", "b"], np.eye(2, 9)), device="cpu")
    with pytest.raises(InputError, match="512 numbers a galaxy"): wide.by_picture(weights, source)


def test_of_close_results_to_a_picture_the_better_is_shown(survey):
    source, weights, _, store = survey
    places = pd.DataFrame(dict(id_str=[f"S{i}" for i in range(12)], ra=np.arange(12.) // 2, dec=0.))   # always two together
    index, query = GalaxyIndex(store, places, device="cpu"), ArrayImages(["x"], source.images[4:5])
    assert len(index.by_picture(weights, query, 11)) == 11 and len(index.by_picture(weights, query, 11, min_separation=5)) == 6
    asked = dict(pictures=query, weights=weights, k=11, catalog=places, device="cpu")
    assert len(search_table(store, **asked, min_separation=5)) == 6


def test_a_picture_that_cannot_be_read_is_named(survey, tmp_path):
    _, weights, _, store = survey
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff")
    source = FolderImages(pd.DataFrame(dict(id_str=["half"], file_loc=["half.jpg"])), tmp_path)
    with pytest.raises(InputError, match="1 pictures cannot be used; half: "):
        GalaxyIndex(store, device="cpu").by_picture(weights, source)


def test_bytes_are_a_picture(survey, tmp_path):
    from PIL import Image
    source, weights, _, store = survey
    Image.fromarray(source.images[7].permute(1, 2, 0).numpy()).save(tmp_path / "7.png")
    found = GalaxyIndex(store, device="cpu").by_picture(weights, (tmp_path / "7.png").read_bytes(), 1)
    assert found.id_str[0] == "S7" and found["query"][0] == "picture"


def test_sheet_shows_query_then_neighbours(survey):
    source, _, _, store = survey
    found = GalaxyIndex(store, device="cpu").by_id(["S1", "S2"], 3)
    figure = neighbour_sheet(found, source, size=32)
    shown = [axis.texts[0].get_text() for axis in figure.axes]
    assert shown[0] == "S1" and shown[4] == "S2" and shown[1] == f"{found.distance[0]:.2f}" and len(shown) == 8
    with pytest.raises(InputError, match="There is no picture of"):
        neighbour_sheet(found, ArrayImages(["S1"], source.images[:1]))
    with pytest.raises(InputError, match="nothing to show"): neighbour_sheet(found.head(0), source)


def test_one_call_is_the_same(tmp_path, survey):
    source, weights, _, store = survey
    index, path = exact(catalog=PLACES), parquet(tmp_path / "t.parquet")
    settings = dict(catalog=PLACES, device="cpu")
    place = tuple(PLACES.loc[3, ["ra", "dec"]])
    for asked, same in ((dict(ids="J0003", k=5, min_separation=3), index.by_id("J0003", 5, 3)),
                        (dict(examples=["J0003"], negatives=["J0008"]), index.by_examples(["J0003"], ["J0008"])),
                        (dict(position=place), index.by_id("J0003"))):
        pd.testing.assert_frame_equal(search_table(path, **asked, **settings), same)
    found = search_table(store, pictures=source, weights=weights, k=2, device="cpu")
    assert found.groupby("query").size().tolist() == [2] * 12
    assert len(search_table(path, queries=(["x"], VECTORS[:1]), k=4)) == 4
    for wrong, said in (({}, "not by none"), (dict(ids="a", examples="b"), "ids and examples"),
                        (dict(pictures=source), "takes the weights"),
                        (dict(ids="a", negatives=["b"]), "Negatives go with")):
        with pytest.raises(InputError, match=said): search_table(path, **wrong)


# The approximate engine

@needs_faiss
@pytest.mark.parametrize("d", [8, 40, 100])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_approximate_keeps_its_promise(d, metric):
    rng = np.random.default_rng(d)
    x = (rng.normal(size=(6500, 10)) @ rng.normal(size=(10, d)) + 0.3 * rng.normal(size=(6500, d))).astype(np.float32)
    x, queries = x[:6000], x[6000:]
    quick, slow = approximate((range(6000), x), metric=metric), exact(x, range(6000), metric=metric)
    (near, rows), (true_near, truth) = quick.neighbours(queries, 10), slow.neighbours(queries, 10)
    assert np.mean([np.isin(t, r).mean() for t, r in zip(truth, rows)]) >= 0.93
    same = rows[:, 0] == truth[:, 0]
    np.testing.assert_allclose(near[same, 0], true_near[same, 0], atol=1e-5)   # distances are exact, whoever found them
    assert quick.approximate["probe"] < quick.approximate["lists"]


@needs_faiss
def test_what_the_lists_lack_is_found_exactly():
    index = approximate((range(539), np.vstack([np.repeat(VECTORS[:1], 500, 0), VECTORS[1:40]])), recall=0.2)
    index.approximate.update(probe=1, candidates=24)
    assert len(index.by_id("3", 20)) == 20


@needs_faiss
def test_same_seed_same_index():
    a, b = (approximate((IDS, VECTORS), seed=4) for _ in range(2))
    pd.testing.assert_frame_equal(a.by_id(IDS[:50]), b.by_id(IDS[:50]))
    assert a.approximate == b.approximate


@needs_faiss
def test_index_is_opened_not_built_again(tmp_path, monkeypatch):
    path = parquet(tmp_path / "t.parquet")
    found = approximate(path, catalog=PLACES).by_id(IDS[:20])
    monkeypatch.setattr(search_module, "_train_lists", lambda *args: pytest.fail("it was built again"))
    os.utime(path)   # a newer date alone means nothing
    pd.testing.assert_frame_equal(approximate(path, catalog=PLACES).by_id(IDS[:20]), found)
    assert sorted(p.name for p in (tmp_path / "t.parquet.cosine.index").iterdir()) == [
        "galaxies.arrow", "index.json", "lists.faiss", "space.safetensors", "vectors.npy"]


@needs_faiss
def test_index_of_a_changed_table_is_built_again(tmp_path):
    path = parquet(tmp_path / "t.parquet")
    before = path.stat()
    approximate(path)
    parquet(path, VECTORS[::-1].copy())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))   # the date does not tell
    same = [IDS[N - 1 - int(name[1:])] for name in exact().by_id(IDS[0], 5).id_str]
    assert approximate(path).by_id(IDS[-1], 5).id_str.tolist() == same
    assert [p.name for p in tmp_path.iterdir() if p.name[0] == "."] == []


@needs_faiss
@pytest.mark.parametrize("name", ["vectors.npy", "lists.faiss", "galaxies.arrow", "space.safetensors"])
@pytest.mark.parametrize("fault", ["flip", "cut", "delete"])
def test_damaged_index_is_built_again(tmp_path, name, fault):
    path = parquet(tmp_path / "t.parquet", VECTORS[:300], IDS[:300])
    found = approximate(path).by_id(IDS[:20])
    file = tmp_path / "t.parquet.cosine.index" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if fault == "delete": file.unlink()
    else: file.write_bytes(data if fault == "flip" else data[: len(data) // 2])
    with pytest.warns(UserWarning, match=f"{name} is not what was written: the index is made again"):
        pd.testing.assert_frame_equal(approximate(path).by_id(IDS[:20]), found)
    approximate(path)   # whole again: no warning


@needs_faiss
def test_index_of_an_earlier_version_is_built_again(tmp_path):
    path = parquet(tmp_path / "t.parquet", VECTORS[:300], IDS[:300])
    found, folder = approximate(path).by_id(IDS[:20]), tmp_path / "t.parquet.cosine.index"
    note = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(note | dict(format=1)))
    (folder / "galaxies.arrow").rename(folder / "galaxies.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")   # nothing is wrong with it
        pd.testing.assert_frame_equal(approximate(path).by_id(IDS[:20]), found)
    assert json.loads((folder / "index.json").read_text())["format"] == 2 and not (folder / "galaxies.parquet").exists()


@pytest.mark.parametrize("engine", ["exact", pytest.param("approximate", marks=needs_faiss)])
def test_ids_that_share_a_hash_are_told_apart(tmp_path, monkeypatch, engine):
    monkeypatch.setattr(search_module, "_keys", lambda ids: np.array([len(i) for i in ids], np.uint64))
    path, ids = parquet(tmp_path / "t.parquet", VECTORS[:40], [f"a{i}" for i in range(40)]), ["a7", "a39", "a0", "a12"]
    index = GalaxyIndex(path, engine=engine, device="cpu")
    assert index.rows_of(ids).tolist() == [7, 39, 0, 12]
    assert index._where(["a39", "b1", "abc"]).tolist() == [39, -1, -1]
    with pytest.raises(InputError, match="no galaxy 'b1'"): index.rows_of(["a1", "b1"])
    twice = parquet(tmp_path / "u.parquet", VECTORS[:3], ["a1", "a2", "a1"])
    with pytest.raises(InputError, match="1 ids come twice .a1."): GalaxyIndex(twice, engine=engine, device="cpu")


@needs_faiss
def test_a_folder_of_something_else_is_left_alone(tmp_path):
    path, folder = parquet(tmp_path / "t.parquet", VECTORS[:300], IDS[:300]), tmp_path / "t.parquet.cosine.index"
    folder.mkdir()
    (folder / "thesis.txt").write_text("ten years")
    with pytest.raises(InputError, match="is there and is no index of this package"): approximate(path)
    (folder / "index.json").write_text(json.dumps({"files": 3}))
    with pytest.raises(InputError, match="nothing was changed"): approximate(path)
    assert (folder / "thesis.txt").read_text() == "ten years"


@needs_faiss
def test_the_index_of_another_table_is_left_alone(tmp_path):
    a = parquet(tmp_path / "a.parquet", VECTORS[:300], IDS[:300])
    b = parquet(tmp_path / "b.parquet", VECTORS[300:600], IDS[:300])
    approximate(a, folder=tmp_path / "index")
    kept = (tmp_path / "index" / "index.json").read_bytes()
    with pytest.raises(InputError, match="holds the index of a.parquet, not of b.parquet"):
        approximate(b, folder=tmp_path / "index")
    with pytest.raises(InputError, match="holds the index of a.parquet, not of this table"):
        approximate((IDS[:300], VECTORS[300:600]), folder=tmp_path / "index")
    assert (tmp_path / "index" / "index.json").read_bytes() == kept


@needs_faiss
def test_a_failure_while_building_leaves_the_old_index(tmp_path, monkeypatch):
    path = parquet(tmp_path / "t.parquet", VECTORS[:300], IDS[:300])
    approximate(path)
    parquet(path, VECTORS[300:600], IDS[:300])
    kept = (tmp_path / "t.parquet.cosine.index" / "index.json").read_bytes()
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(search_module, "save_file", full)
    with pytest.raises(InputError, match="cannot be written .*: No space left on device"): approximate(path)
    assert (tmp_path / "t.parquet.cosine.index" / "index.json").read_bytes() == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.parquet", "t.parquet.cosine.index"]


@needs_faiss
def test_settings_have_folders_of_their_own(tmp_path):
    path = parquet(tmp_path / "t.parquet", VECTORS[:300], IDS[:300])
    for settings in ({}, dict(metric="euclidean"), dict(metric="euclidean", components=5)):
        approximate(path, **settings)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "t.parquet.cosine.index", "t.parquet.euclidean.index", "t.parquet.euclidean5.index"]


@needs_faiss
def test_a_store_is_indexed_beside_itself(survey, tmp_path):
    store = Store(shutil.copytree(survey[3].root, tmp_path / "features"))
    index = approximate(store)
    assert index.by_id("S3", 11).id_str.tolist() == GalaxyIndex(store, device="cpu").by_id("S3", 11).id_str.tolist()
    assert (tmp_path / "features.cosine.index" / "index.json").exists() and Store(store.root).verify().ok


def test_size_decides(monkeypatch):
    monkeypatch.setattr(search_module, "EXACT_UP_TO", 100)
    assert GalaxyIndex((IDS[:100], VECTORS[:100]), device="cpu").engine == "exact"
    if find_spec("faiss"): assert GalaxyIndex((IDS, VECTORS), device="cpu").engine == "approximate"


def test_without_faiss(no_faiss, monkeypatch):
    with pytest.raises(InputError, match=r"needs faiss, of the extra `search`: pip install 'gz_nbdev\[search\]'"):
        approximate((IDS, VECTORS))
    monkeypatch.setattr(search_module, "EXACT_UP_TO", 100)
    with pytest.warns(UserWarning, match="3,000 galaxies are searched exactly, which takes longer"):
        assert GalaxyIndex((IDS, VECTORS), device="cpu").engine == "exact"


# What is wrong with a table

def test_vectors_with_holes(tmp_path):
    broken = VECTORS.copy()
    broken[5, 3], broken[9, 0] = np.nan, np.inf
    with pytest.raises(InputError, match="2 vectors hold NaN or infinity, those of J0005, J0009"): exact(broken)
    with pytest.raises(InputError, match="t.parquet: 2 vectors"): GalaxyIndex(parquet(tmp_path / "t.parquet", broken))
    with pytest.raises(InputError, match="The query holds NaN"): exact().by_vector(broken[5])


@pytest.mark.parametrize("ids,vectors,said", [
    (IDS[:4], VECTORS[:5], "4 ids, but 5 vectors"), ([], VECTORS[:0], "has no galaxies"),
    (["a", "a"], VECTORS[:2], "1 ids stand more than once"), ([1.5, 2.5], VECTORS[:2], "is 1.5, not text"),
    (["a"], VECTORS[0], "of numbers, not float32 of shape"), (["a"], np.array([["x"]]), "of numbers, not <U1")])
def test_ids_and_vectors_that_disagree(ids, vectors, said):
    with pytest.raises(InputError, match=said): exact(vectors, ids)


def write(path, **columns):
    "A parquet file of any columns"
    pq.write_table(pa.table(columns), path)
    return path


def test_tables_of_another_shape(tmp_path):
    t, listed = tmp_path / "t.parquet", pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4, np.float32)), 2)
    for columns, said in (
            (dict(id_str=["a"], smooth=[0.5]), "has no vectors: neither 'features' nor 'feat_0'"),
            (dict(id=["a"], feat_0=[0.5]), "has no column 'id_str'"),
            (dict(id_str=[1.0, 2.0], features=listed), "'id_str' is double, not text"),
            (dict(id_str=["a", None], features=listed), "1 rows have no id"),
            (dict(id_str=["a", "a"], features=listed), r"1 ids come twice \(a\)"),
            (dict(id_str=["a"], features=pa.array([[1.0, 2.0]])), "Not a column of vectors of one length")):
        with pytest.raises(InputError, match=said): GalaxyIndex(write(t, **columns))


def test_published_form_is_read(tmp_path):
    wide = {f"feat_{i}": VECTORS[:, i] for i in range(D)}
    path = write(tmp_path / "wide.parquet", id_str=IDS, **wide, ra=PLACES.ra, dec=PLACES.dec)
    pd.testing.assert_frame_equal(GalaxyIndex(path, device="cpu").by_id("J0000"), exact(catalog=PLACES).by_id("J0000"))


@pytest.mark.parametrize("keep", [0, 4, 1000, -100])
def test_truncated_file(tmp_path, keep):
    path = parquet(tmp_path / "t.parquet")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="t.parquet cannot be read"): GalaxyIndex(path)


def test_damaged_pages(tmp_path):
    path = parquet(tmp_path / "t.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(InputError, match="t.parquet is damaged"): GalaxyIndex(path)


def test_stores_that_are_not_searched(tmp_path, survey):
    store = Store(shutil.copytree(survey[3].root, tmp_path / "features"))
    with pytest.raises(InputError, match="is the inside of a store: give .*features, whose manifest"):
        GalaxyIndex(store.root / "shards")
    with pytest.raises(InputError, match="There is no store at"): GalaxyIndex(tmp_path)
    with pytest.raises(InputError, match="There is no table at"): GalaxyIndex(tmp_path / "none.parquet")
    shard = store.root / "shards" / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(InputError, match="00000.parquet is not what was written"): GalaxyIndex(store)


def test_catalog_of_other_galaxies():
    with pytest.raises(InputError, match="have no galaxy in common: 'J0000' there, 'X0' here"):
        exact(catalog=pd.DataFrame(dict(id_str=["X0"], ra=[1.0], dec=[2.0])))
    with pytest.raises(InputError, match="not on the sky"): exact(catalog=PLACES.assign(dec=PLACES.dec + 90))
    with pytest.raises(InputError, match="'dec'"): exact(catalog=PLACES.drop(columns="dec"))


# What is wrong with a query

def test_unknown_galaxy_gets_near_names():
    with pytest.raises(InputError, match="has no galaxy 'J00007': did you mean .*J0007"): exact().by_id("J00007")
    with pytest.raises(InputError, match="has no galaxy 'M31'"): exact().by_examples(["J0001"], ["M31"])


@pytest.mark.parametrize("ask,said", [
    (lambda i: i.by_id([]), "The query has no galaxies"), (lambda i: i.by_examples([]), "The query has no galaxies"),
    (lambda i: i.by_vector(np.empty((0, D))), "The query has no vectors"),
    (lambda i: i.by_id(["J0001", "J0001"]), "more than once"),
    (lambda i: i.by_vector(np.ones(7)), "7 numbers a galaxy and The table has 20"),
    (lambda i: i.by_table((["x"], np.ones((1, 7)))), "use the encoder that made the table"),
    (lambda i: i.by_vector(VECTORS[:2], names=["one"]), "1 names for 2 vectors"),
    (lambda i: i.by_id("J0001", k=N), "k = 3000, but The table has 3,000 galaxies: ask for 1 to 2999"),
    (lambda i: i.by_id("J0001", k=0), "k = 0"), (lambda i: i.neighbours(VECTORS[0], N + 5), "k = 3005")])
def test_queries_that_cannot_be(ask, said):
    with pytest.raises(InputError, match=said): ask(exact())


def test_settings_get_near_names():
    with pytest.raises(InputError, match="did you mean 'cosine'"): exact(metric="cosin")
    with pytest.raises(InputError, match="did you mean 'exact'"): GalaxyIndex((IDS, VECTORS), engine="exakt")


# The measure

def test_precision_by_brute_force():
    labels = np.where(VECTORS[:, 0] > 4, "bright", np.where(VECTORS[:, 1] > 4, "red", "faint"))[:400]
    x = VECTORS[:400] - VECTORS[:400].mean(0)
    every = pairwise_distances(x.astype(float), metric="cosine")
    np.fill_diagonal(every, np.inf)
    same = labels[every.argsort(1)[:, :10]] == labels[:, None]
    found = precision_at_k(VECTORS[:400], labels)
    for name in set(labels):
        assert found.precision[name] == pytest.approx(same[labels == name].mean(), abs=1e-3)
        assert found.chance[name] == pytest.approx(((labels == name).sum() - 1) / 399)
    assert (found.precision_lower90 <= found.precision).all() and (found.precision <= found.precision_upper90).all()


def test_random_labels_are_found_by_chance():
    found = precision_at_k(VECTORS, np.random.default_rng(5).uniform(size=N) < 0.3)
    assert list(found.index) == [True] and found.galaxies[True] == pytest.approx(900, abs=80)
    assert found.precision[True] == pytest.approx(found.chance[True], abs=0.03)


def test_precision_leaves_out_what_has_no_label():
    labels = pd.Series(["a", "b"] * 200)
    some = labels.mask(np.arange(400) >= 300)
    pd.testing.assert_frame_equal(precision_at_k(VECTORS[:400], some), precision_at_k(VECTORS[:300], labels[:300]))
    with pytest.raises(InputError, match="at least two are needed"): precision_at_k(VECTORS[:400], [1] + [0] * 399)
    with pytest.raises(InputError, match="399 labels for 400"): precision_at_k(VECTORS[:400], [1] * 399)


def test_precision_counts_copies_but_not_itself():
    "Of three equal vectors, each is found by the others, never by itself"
    found = precision_at_k(np.repeat(VECTORS[:2], 3, 0), list("aaabbb"), k=2)
    assert found.precision.tolist() == [1, 1]


@pytest.mark.parametrize("columns,said", [(dict(feat_0=["x", "y"]), "column 'feat_0' is string, not numbers"),
                                          (dict(feat_0=[1.0, 2.0], ra=["x", "1"], dec=[1.0, 2.0]), "column 'ra' is string"),
                                          (dict(features=pa.array([["x"], ["y"]], pa.list_(pa.string(), 1))), "'features' holds")])
def test_text_where_numbers_belong(tmp_path, columns, said):
    with pytest.raises(InputError, match=said): exact_table(write(tmp_path / "t.parquet", id_str=["a", "b"], **columns))


def exact_table(path): return GalaxyIndex(path, device="cpu", engine="exact")


@pytest.mark.parametrize("footer", [b"{broken", b"[1]", b"3", b"\xff"])
def test_damaged_footer(tmp_path, footer):
    table = pa.table(dict(id_str=["a", "b"], feat_0=[1.0, 2.0])).replace_schema_metadata({b"gz_nbdev": footer})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="metadata 'gz_nbdev', is damaged"): exact_table(tmp_path / "t.parquet")


def test_ids_that_come_twice_in_any_reader(tmp_path):
    path = parquet(tmp_path / "t.parquet", VECTORS[:4], ["a", "b", "c", "b"])
    said = r"t.parquet: 1 ids come twice \(b\)"
    with pytest.raises(InputError, match=said): list(search_module._open_table(path).blocks())
    with pytest.raises(InputError, match=said): exact_table(path)
