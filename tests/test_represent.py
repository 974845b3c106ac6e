"Representations: any encoder over any source, faults (F1, F17, F21, F28), the published form, fewer numbers"

import json
import os
import signal
import subprocess
import sys
import time
import types
from io import BytesIO
from itertools import islice

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from astropy.io import fits
from PIL import Image
from sklearn.decomposition import PCA

import gz_nbdev.represent as module
from gz_nbdev.data import ArrayImages, FitsImages, FolderImages, HubImages, ParquetImages, View, load_pixels
from gz_nbdev.models import GalaxyModel, load_weights, save_weights, shipped_weights
from gz_nbdev.represent import (
    Pca,
    Plan,
    choose_plan,
    fit_pca,
    open_encoder,
    plot_explained,
    read_wide,
    reduce_table,
    represent,
    umap_places,
    write_wide,
)
from gz_nbdev.schema import InputError
from gz_nbdev.search import GalaxyIndex
from gz_nbdev.store import Store, note_file, read_meta

SMALL = View(16)
CPU = torch.device("cpu")


class Tiny(torch.nn.Module):
    "Colours and edges as features; NaN for an all-white picture, too large for float16 for an all-black one"

    num_features = 12

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = x * self.weight
        parts = [x.mean((2, 3)), x.amax((2, 3)), x[..., :4, :].mean((2, 3)), x[..., :4].mean((2, 3))]
        features = torch.cat(parts, 1)
        features = torch.where(x.mean((1, 2, 3))[:, None] > 8.9, torch.nan, features)
        return torch.where(x.amax((1, 2, 3))[:, None] < -0.9, 1e6, features)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "No test sees the notes of another, or leaves any"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(n: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 250, (n, 3, size, size), dtype=np.uint8))


def names(n: int) -> list:
    return [f"{587739505552785605 + i}" for i in range(n)]


def run(source, out, encoder=None, **options):
    "`represent` as most tests call it"
    options = dict(turns=1, view=SMALL, device="cpu", progress=False) | options
    return represent(encoder or Tiny(), source, out, **options)


def table_of(store: Store) -> tuple:
    ids, features = Store(store.root).read_features()
    return ids, features.tobytes(), features.dtype


def png(picture: torch.Tensor) -> bytes:
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(out := BytesIO(), format="PNG")
    return out.getvalue()


# Any encoder, any source


@pytest.mark.parametrize("kind", ["array", "folder", "parquet", "cache", "hub", "stream"])
def test_every_source_gives_the_same_rows(tmp_path, kind):
    images, ids = pictures(21), names(21)
    expected = table_of(run(ArrayImages(ids, images), tmp_path / "expected", plan=Plan()))
    data = [png(image) for image in images]
    if kind == "folder":
        for i, content in zip(ids, data): (tmp_path / f"{i}.png").write_bytes(content)
        source = FolderImages(pd.DataFrame(dict(id_str=ids, file_loc=[f"{i}.png" for i in ids])), tmp_path)
    elif kind == "parquet":
        pq.write_table(pa.table(dict(id_str=ids, image=data)), tmp_path / "images.parquet", row_group_size=5)
        source = ParquetImages(tmp_path / "images.parquet")
    elif kind in ("hub", "stream"):
        datasets = pytest.importorskip("datasets")
        features = datasets.Features(dict(id_str=datasets.Value("string"), image=datasets.Image(decode=False)))
        rows = dict(id_str=ids, image=[dict(bytes=content, path=None) for content in data])
        dataset = datasets.Dataset.from_dict(rows, features=features)
        source = HubImages(dataset.to_iterable_dataset() if kind == "stream" else dataset)
    else:
        source = ArrayImages(ids, images)
        if kind == "cache": source = load_pixels(source, SMALL, progress=False)
    assert table_of(run(source, tmp_path / "out", plan=Plan())) == expected


def test_fits_cutouts(tmp_path):
    values = np.random.default_rng(0).gamma(2, 0.01, (3, 40, 40)).astype(np.float32)
    for i in "ab": fits.PrimaryHDU(values, fits.Header(dict(BANDS="grz"))).writeto(tmp_path / f"{i}.fits")
    source = FitsImages(pd.DataFrame(dict(id_str=["a", "b"], file_loc=["a.fits", "b.fits"])), tmp_path)
    a, b = run(source, tmp_path / "out").read_features()[1]
    assert (a == b).all() and np.isfinite(a).all()


def test_every_kind_of_encoder(tmp_path):
    torch.manual_seed(0)
    encoder = timm.create_model("resnet10t", num_classes=0).eval()
    view, source = View(32, mean=(0.2, 0.3, 0.4)), ArrayImages(names(9), pictures(9, 40))
    folder = save_weights(GalaxyModel(encoder, 3), tmp_path / "weights", view)
    with torch.no_grad(): expected = encoder(view.normalise(torch.stack([p for _, p in _decoded(source, view)])))
    for number, (kind, its_view) in enumerate([(load_weights(folder), None), (str(folder), None), (folder, None), (encoder, view)]):
        store = represent(kind, source, tmp_path / str(number), turns=1, device="cpu", view=its_view, progress=False)
        found = torch.from_numpy(store.read_features()[1])
        assert torch.cosine_similarity(found, expected).min() > 0.999
    assert open_encoder(folder).hash == load_weights(folder).hash and open_encoder(encoder, view).width == 512


def _decoded(source, view):
    from gz_nbdev.data import decode
    return [(i, decode(source.read(k), view)) for k, i in enumerate(source.ids)]


def test_names_of_timm_and_of_the_package(tmp_path, monkeypatch):
    torch.manual_seed(0)
    encoder = timm.create_model("resnet10t", num_classes=0)
    timm.models.save_for_hf(encoder, tmp_path / "timm", safe_serialization=True)   # as the hub stores them
    monkeypatch.setattr(module, "create_encoder", lambda name, pretrained: encoder)
    opened = open_encoder("resnet10t.c3_in1k")
    assert opened.name == "resnet10t.c3_in1k" or opened.width == 512
    assert opened.view.mean == pytest.approx(encoder.pretrained_cfg["mean"]) and opened.view.size == 176
    monkeypatch.undo()
    assert open_encoder(tmp_path / "timm").width == 512
    for name in shipped_weights()[:1]: assert open_encoder(name).name == load_weights(name).info["name"]

    def offline(name, pretrained): raise OSError("no route to host")
    monkeypatch.setattr(module, "create_encoder", offline)
    with pytest.raises(InputError, match="published weights of 'resnet18' cannot be had: no route to host"):
        open_encoder("resnet18")
    monkeypatch.undo()
    with pytest.raises(InputError, match="no encoder is called 'resnt18'"): open_encoder("resnt18")
    with pytest.raises(InputError, match="is a file"): open_encoder(tmp_path / "x.pkl")


def test_encoder_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="Flatten has no num_features"): open_encoder(torch.nn.Flatten(), SMALL)
    with pytest.raises(InputError, match="Tiny does not say how pictures become its input"): open_encoder(Tiny())
    with pytest.raises(InputError, match="not int"): open_encoder(3)
    folder = save_weights(GalaxyModel(timm.create_model("resnet10t", num_classes=0), 3), tmp_path / "weights", SMALL)
    with pytest.raises(InputError, match="Leave view= away"): open_encoder(folder, View(32))
    liar = Tiny()
    liar.num_features = 13
    with pytest.raises(InputError, match=r"gives \(\d+, 12\) for .* promises \(\d+, 13\)"):
        run(ArrayImages(names(3), pictures(3)), tmp_path / "liar", liar)
    assert not len(Store(tmp_path / "liar"))


def test_the_users_network_is_left_as_it_is(tmp_path):
    encoder = timm.create_model("resnet10t", num_classes=0).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    run(ArrayImages(names(40), pictures(40, 32)), tmp_path / "out", encoder, view=View(32), plan=Plan("bf16", 8))
    after = encoder.state_dict()
    assert encoder.training and all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in encoder.parameters())


# What is stored


def test_turns_are_averaged_and_threads_do_not_matter(tmp_path):
    images, ids, threads = pictures(50), names(50), torch.get_num_threads()
    encoder = Tiny()
    with torch.no_grad():
        x = SMALL.normalise(images)
        expected = torch.stack([encoder(torch.rot90(x, t, (-2, -1))) for t in range(4)]).mean(0)
    stores = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            stores.append(run(ArrayImages(ids, images), tmp_path / str(count), encoder, turns=4, plan=Plan(batch=8)))
            assert torch.get_num_threads() == count
    finally: torch.set_num_threads(threads)
    assert table_of(stores[0]) == table_of(stores[1]) == table_of(stores[2])
    assert np.allclose(stores[0].read_features()[1], expected, atol=1e-5)
    meta = stores[0].header["meta"]
    assert (meta["turns"], meta["features"], meta["view"], meta["dtype"]) == (4, 12, SMALL.to_dict(), "float32")
    for turns in (0, 5, "4"):
        with pytest.raises(InputError, match="four quarter turns"): run(ArrayImages(ids, images), tmp_path / "x", turns=turns)
    with pytest.raises(InputError, match="'float64'"): run(ArrayImages(ids, images), tmp_path / "x", dtype="float64")


def test_what_is_no_number_is_quarantined(tmp_path):
    images = pictures(20)
    images[3], images[7] = 255, 0

    class Source(ArrayImages):
        def read(self, i): return b"" if i == 5 else super().read(i)

    source = Source(names(20), images)
    store = run(source, tmp_path / "half", dtype="float16")
    reasons = store.failures().set_index("id_str").reason
    assert "not finite" in reasons[source.ids[3]] and "too large for float16" in reasons[source.ids[7]]
    assert "empty file" in reasons[source.ids[5]] and len(reasons) == 3 and len(store) == 17
    assert store.read_features()[1].dtype == np.float16
    whole = run(source, tmp_path / "whole")
    assert len(whole) == 18 and "17 written + 3 quarantined" in store.summary


def test_nothing_but_nan_stops_before_anything_is_written(tmp_path):
    encoder = Tiny()
    with torch.no_grad(): encoder.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN for every one of the first .* galaxies"):
        run(ArrayImages(names(20), pictures(20)), tmp_path / "out", encoder)
    assert not len(Store(tmp_path / "out")) and not len(Store(tmp_path / "out").failures())


def test_a_store_of_something_else_is_left_alone(tmp_path):
    source = ArrayImages(names(20), pictures(20))
    before = table_of(run(source, tmp_path / "out"))
    other = Tiny()
    with torch.no_grad(): other.weight.fill_(2)
    for message, change in [("weights was", dict(encoder=other)), ("turns was 1, now is 4", dict(turns=4)),
                            ("view was", dict(view=View(24))), ("dtype was float32", dict(dtype="float16"))]:
        with pytest.raises(InputError, match=message): run(source, tmp_path / "out", **change)
    other.num_features = 640
    with pytest.raises(InputError, match="features was 12, now is 640"): run(source, tmp_path / "out", other)
    with pytest.raises(InputError, match="inside of a store"): run(source, tmp_path / "out" / "shards")
    assert table_of(Store(tmp_path / "out")) == before


def test_a_shard_cut_short_is_named_and_mended(tmp_path):
    source = ArrayImages(names(40), pictures(40))
    store = run(source, tmp_path / "out", shard_size=8, plan=Plan(batch=8))
    before, shard = table_of(store), tmp_path / "out" / "shards" / "00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-40])
    for call in (lambda: run(source, tmp_path / "out"), lambda: fit_pca(store, 2), lambda: write_wide(store, tmp_path / "w")):
        with pytest.raises(InputError, match="00002.parquet is not what was written"): call()
    assert not (tmp_path / "w").exists() and not (tmp_path / "out" / "pca.json").exists()
    with Store(tmp_path / "out", {k: v for k, v in store.header["meta"].items() if k != "version"}) as damaged:
        damaged.repair()
    again = run(source, tmp_path / "out", plan=Plan(batch=8))
    ids, features = again.read_features()
    known = dict(zip(*Store(tmp_path / "out").read_features()))
    assert sorted(ids) == sorted(source.ids) and len(known) == 40
    expected = dict(zip(before[0], np.frombuffer(before[1], np.float32).reshape(40, 12)))
    assert all((known[i] == expected[i]).all() for i in ids)


KILLED = """
import sys, torch, numpy as np
sys.path.insert(0, {tests!r})
from test_represent import Tiny, SMALL, ArrayImages, names, pictures, represent
import timm
torch.manual_seed(0)
images = pictures(3000)
images[17], images[2222] = 255, 255
source = ArrayImages(names(3000), images)
print("ready", flush=True)
represent(timm.create_model("resnet10t", num_classes=0), source, {out!r}, turns=1, view=SMALL, device="cpu",
          progress=False, shard_size=128)
"""


def test_f1_killed_three_times_the_table_is_the_same(tmp_path):
    env, rng = os.environ | dict(OMP_NUM_THREADS="2"), np.random.default_rng()
    def start(out):
        text = KILLED.format(tests=os.path.dirname(__file__), out=str(tmp_path / out))
        return subprocess.Popen([sys.executable, "-c", text], env=env, stdout=subprocess.PIPE)
    assert start("whole").wait(300) == 0
    killed = 0
    for _ in range(3):
        job = start("killed")
        job.stdout.readline()   # it has begun
        shards, wanted = tmp_path / "killed" / "shards", rng.integers(1, 4)
        had = len(list(shards.glob("*.parquet"))) if shards.exists() else 0
        while job.poll() is None and (len(list(shards.glob("*.parquet"))) if shards.exists() else 0) < had + wanted:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        if job.poll() is None:
            job.send_signal(signal.SIGKILL)
            killed += 1
        job.wait()
    assert killed == 3
    left = Store(tmp_path / "killed")
    assert len(left) < 3000 and len(left) % 8 == 0
    assert start("killed").wait(300) == 0
    whole, killed = Store(tmp_path / "whole"), Store(tmp_path / "killed")
    assert table_of(whole) == table_of(killed) and len(whole) == 3000
    assert [s["sha256"] for s in whole.shards] == [s["sha256"] for s in killed.shards]


def test_batches_run_only_a_little_ahead():
    "Memory does not grow with the catalog: of an endless source no more is taken than a few batches"
    taken = []
    def endless():
        while True:
            taken.append(1)
            yield [str(len(taken))], torch.zeros(1, 3, 8, 8)
    results = module._side_by_side(lambda pixels: pixels.sum().item(), module._joined(endless(), 4), 2)
    assert [ids for ids, _ in islice(results, 3)] == [[str(4 * i + j) for j in (1, 2, 3, 4)] for i in range(3)]
    assert len(taken) <= 4 * (3 + 2 * 2)


def test_an_error_in_a_thread_reaches_the_caller(tmp_path):
    class Broken(Tiny):
        def forward(self, x): raise RuntimeError("no kernel for this")
    with pytest.raises(RuntimeError, match="no kernel"):
        run(ArrayImages(names(30), pictures(30)), tmp_path / "out", Broken(), plan=Plan())
    assert Store(tmp_path / "out", Store(tmp_path / "out").header["meta"] | {}).close() is None   # the lock is free


# The plan


def rows_of(rates: dict) -> list:
    return [(plan, rate, seconds) for plan, (rate, seconds) in rates.items()]


def test_the_best_plan_is_arithmetic():
    eager, compiled = Plan("bf16", 8), Plan("bf16", 8, True)
    rows = rows_of({Plan(): (100, 0), eager: (250, 0), compiled: (400, 60)})
    for n in (1, 100, 10_000, 39_999, 40_001, 10**7):
        cost = {plan: seconds + n / rate for plan, rate, seconds in rows}
        assert cost[module._best(rows, n)] == min(cost.values())
    assert module._best(rows, 39_000) == eager and module._best(rows, 41_000) == compiled


def spied(monkeypatch, rates: dict, seconds: float = 30.):
    "Trials that cost nothing and give these rates (by precision, batch, compiled); what was tried"
    tried = []
    def measure(self, plan):
        tried.append(plan)
        rate = rates.get((plan.precision, plan.compiled), 0) * (1.2 if plan.batch == 16 else 1)
        return plan, rate, seconds if plan.compiled else 0.
    monkeypatch.setattr(module._Trial, "measure", measure)
    monkeypatch.setattr(module, "_guess", lambda device, size: Plan("float32", 32))
    return tried


def test_a_trial_only_where_it_is_repaid(monkeypatch):
    encoder, pixels = open_encoder(Tiny(), SMALL), pictures(64)
    rates = {("float32", False): 100, ("bf16", False): 200, ("bf16", True): 500}
    tried, checked = spied(monkeypatch, rates), []
    monkeypatch.setattr(module._Trial, "check", lambda self, plan, count: not checked.append(plan))
    assert choose_plan(encoder, pixels, 100, 1, "cpu") == Plan("float32", 32) and not tried
    assert choose_plan(encoder, pixels, 100, 1, "cpu") == Plan("float32", 32) and len(checked) == 1   # noted
    assert choose_plan(encoder, pixels, 100, 1, "cpu", batch=7) == Plan("float32", 7) and len(checked) == 2
    assert choose_plan(encoder, pixels, 100, 1, "cpu") == Plan("float32", 32) and len(checked) == 2
    assert choose_plan(encoder, pixels, 2_500, 1, "cpu") == Plan("float32", 32) and len(tried) == 1
    assert choose_plan(encoder, pixels, 10_000, 1, "cpu") == Plan("bf16", 16)
    assert not any(plan.compiled for plan in tried)
    tried.clear()
    assert choose_plan(encoder, pixels, 150, 1, "cpu") == Plan("bf16", 16) and not tried   # from the notes
    assert choose_plan(encoder, pixels, 10**6, 1, "cpu") == Plan("bf16", 16, True)
    assert [plan.compiled for plan in tried] == [True]
    tried.clear()
    assert choose_plan(encoder, pixels, 1_000, 1, "cpu") == Plan("bf16", 16) and not tried   # compiling is not repaid
    assert choose_plan(encoder, pixels, 50_000, 1, "cpu").compiled and not tried


def test_a_small_job_is_shared_fairly(monkeypatch):
    encoder, pixels = open_encoder(Tiny(), SMALL), pictures(64)
    spied(monkeypatch, {("float32", False): 100})
    def batch(todo, **given): return choose_plan(encoder, pixels, todo, 1, "cpu", **given).batch
    assert [batch(n, workers=2) for n in (3, 40, 100, 150, 1000)] == [8, 8, 24, 32, 32]
    assert batch(100) == 32 and batch(100, workers=2, batch=50) == 50


def test_what_was_noted_of_bf16_does_not_overrule_a_guess_of_float32(monkeypatch):
    encoder, pixels = open_encoder(Tiny(), SMALL), pictures(64)
    monkeypatch.setattr(module, "_guess", lambda device, size: Plan("bf16", 32))
    assert choose_plan(encoder, pixels, 100, 1, "cpu") == Plan("bf16", 32)
    monkeypatch.setattr(module, "_guess", lambda device, size: Plan("float32", 32))
    assert choose_plan(encoder, pixels, 100, 1, "cpu") == Plan("float32", 32)


def test_the_network_that_was_checked_does_the_job(monkeypatch, tmp_path):
    made = []
    class Counted(module._Network):
        def __init__(self, encoder, plan, *args):
            made.append(plan.precision)
            super().__init__(encoder, plan, *args)
    monkeypatch.setattr(module, "_Network", Counted)
    monkeypatch.setattr(module, "_guess", lambda device, size: Plan("bf16", 32))
    source, encoder = ArrayImages(names(30), pictures(30)), Tiny()
    first = run(source, tmp_path / "first", encoder)
    assert sorted(made) == ["bf16", "float32"]   # float32 to compare with
    again = run(source, tmp_path / "again", encoder)
    assert made[2:] == ["bf16"]   # noted: nothing to compare
    assert first.read_features()[0] == again.read_features()[0]
    assert np.array_equal(first.read_features()[1], again.read_features()[1])


def test_notes_that_are_broken_or_cannot_be_kept(monkeypatch, tmp_path):
    encoder, pixels = open_encoder(Tiny(), SMALL), pictures(64)
    rates = {("float32", False): 100, ("bf16", False): 200}
    tried = spied(monkeypatch, rates)
    choose_plan(encoder, pixels, 10_000, 1, "cpu")
    file = note_file(module._note_name(encoder, CPU, 1))
    for content in (b"", b"{", b"[1]", b'[{"plan": {"batch": -1}, "rate": 1, "seconds": 0}]', b"\xff\xfe",
                    b'[{"plan": {"batch": 8}, "rate": -1, "seconds": 0}]', b'[{"plan": {"size": 8}, "rate": 1}]'):
        file.write_bytes(content)
        tried.clear()
        assert choose_plan(encoder, pixels, 10_000, 1, "cpu") == Plan("bf16", 16) and tried
    assert json.loads(file.read_text())
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert choose_plan(encoder, pixels, 10_000, 1, "cpu") == Plan("bf16", 16)


def test_without_a_compiler_it_goes_on(monkeypatch):
    def compile(*args, **options): raise RuntimeError("no C++ compiler found")
    monkeypatch.setattr(torch, "compile", compile)
    trial = module._Trial(open_encoder(Tiny(), SMALL), pictures(32), CPU, 1, Plan())
    with pytest.warns(UserWarning, match="compiled=True.* cannot be used .*no C.. compiler"):
        assert trial.measure(Plan(compiled=True))[1] == 0


def test_a_plan_that_changes_the_numbers_is_dropped():
    class Delicate(Tiny):
        def forward(self, x): return super().forward(x) + 1000 - 1000
    encoder = open_encoder(Delicate(), SMALL)
    trial = module._Trial(encoder, pictures(32), CPU, 1, Plan())
    with pytest.warns(UserWarning, match="bf16.*not used"): assert trial.measure(Plan("bf16"))[1] == 0
    assert trial.measure(Plan())[1] > 0
    class Stubborn(Tiny):
        def forward(self, x): return super().forward(x) @ torch.eye(12)   # float32, whatever the module is
    trial = module._Trial(open_encoder(Stubborn(), SMALL), pictures(32), CPU, 1, Plan())
    with pytest.warns(UserWarning, match="cannot be used for Stubborn"): assert not trial.check(Plan("bf16"), 2)


def test_a_compiled_network_sees_one_size(monkeypatch, tmp_path):
    seen = []
    def compile(network, **options):
        assert options["dynamic"] is False
        def called(x):
            seen.append(tuple(x.shape))
            return network(x)
        return called
    monkeypatch.setattr(torch, "compile", compile)
    source = ArrayImages(names(37), pictures(37))
    plain = run(source, tmp_path / "plain", plan=Plan(batch=16))
    padded = run(source, tmp_path / "padded", plan=Plan(batch=16, compiled=True))
    assert set(seen) == {(16, 3, 16, 16)} and len(seen) == 3
    assert np.allclose(plain.read_features()[1], padded.read_features()[1], atol=1e-6)


def test_a_job_goes_on_with_the_plan_it_began_with(monkeypatch, tmp_path):
    source = ArrayImages(names(40), pictures(40))
    meta = dict(run(source, tmp_path / "out", shard_size=8, batch_size=8).header["meta"])
    meta.pop("version")
    said = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert said["plan"]["batch"] == 8
    (tmp_path / "out" / "shards" / "00004.parquet").unlink()
    with Store(tmp_path / "out", meta) as store: store.repair()
    def never(*args): raise AssertionError("another plan")
    monkeypatch.setattr(module, "_chosen", never)
    run(source, tmp_path / "out")
    monkeypatch.undo()
    for content in ("", "{}", '{"plan": {"precision": "int3"}, "machine": "x"}'):
        (tmp_path / "out" / "plan.json").write_text(content)
        assert len(run(source, tmp_path / "out")) == 40   # finished: nothing to choose for
    with pytest.raises(InputError, match="No precision 'bf61'"): Plan("bf61")
    with pytest.raises(InputError, match="A batch of 0"): Plan(batch=0)


# The published form


def published(folder, form: str, n=30, width=12) -> tuple:
    "A file as it is published, and what is in it"
    rng = np.random.default_rng(1)
    features = rng.normal(size=(n, width)).astype(np.float32)
    order = list(range(width))[::-1]   # out of order, as text sorts them
    spelt = dict(decals="feat_{}_pred", gz2="feat_{}_pred", desi="feat_pca_{}", plain="feat_{}")[form]
    columns = {spelt.format(i): features[:, i] for i in order}
    ids = [f"J{i:09d}" for i in range(n)] if form == "decals" else names(n)
    if form == "decals": columns = dict(iauname=ids, png_loc=[f"{i}.png" for i in ids]) | columns
    elif form == "gz2": columns = dict(iauname=[f"J{i}" for i in range(n)], png_loc=["x.png"] * n, id_str=ids) | columns
    elif form == "desi": columns = dict(id_str=ids, ra=rng.uniform(0, 360, n), dec=rng.uniform(-90, 90, n)) | columns
    else: columns = dict(id_str=ids) | columns
    pd.DataFrame(columns).to_parquet(folder / f"{form}.parquet", row_group_size=7)
    return folder / f"{form}.parquet", ids, features, pd.DataFrame(columns)


@pytest.mark.parametrize("form", ["plain", "decals", "gz2", "desi"])
def test_published_files_there_and_back(tmp_path, form):
    path, ids, features, table = published(tmp_path, form)
    store = read_wide(path, tmp_path / "store")
    assert store.read_features()[0] == ids and (store.read_features()[1] == features).all()
    beside = store.read().merge(table[["iauname"]].assign(id_str=ids), on="id_str", suffixes=("", "_x")) \
        if form == "decals" else store.read()
    again = pd.read_parquet(write_wide(store, tmp_path / "again.parquet", form, None if form == "plain" else beside))
    assert set(again) == set(table) and again[list(table)].equals(table.astype(again[list(table)].dtypes))
    assert [c for c in again if c.startswith("feat")] == sorted((c for c in again if c.startswith("feat")),
                                                                key=lambda c: int("".join(filter(str.isdigit, c))))
    if form == "desi": assert GalaxyIndex(store, device="cpu").by_id(ids[:1], 2).id_str[0] in ids


def test_whole_numbers_as_ids_keep_every_digit(tmp_path):
    numbers = [587739505552785605 + i for i in range(5)]
    pd.DataFrame(dict(id_str=numbers, feat_0=np.arange(5.), feat_1=1.)).to_parquet(tmp_path / "a.parquet")
    store = read_wide(tmp_path / "a.parquet", tmp_path / "store", dtype="float16")
    assert store.read_features()[0] == [str(n) for n in numbers] and store.read_features()[1].dtype == np.float16


@pytest.mark.parametrize("change, message", [
    (dict(id_str=[1.5e17, 2., 3.]), "A float keeps 16 digits"),
    (dict(id_str=["a", None, "c"]), "1 rows have no id_str"),
    (dict(id_str=["a", "b", "a"]), "ids come twice"),
    (dict(feat_3=1.), "number 2 is missing"),
    (dict(feat_1_pred=1.), "number 1 is missing or comes twice"),
])
def test_published_files_that_cannot_be_used(tmp_path, change, message):
    good = dict(id_str=["a", "b", "c"], feat_0=[1., 2, 3], feat_1=[1., 2, 3])
    pd.DataFrame(good | change).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message): read_wide(tmp_path / "a.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not len(Store(tmp_path / "out"))


def test_positions_are_those_of_the_same_galaxies(tmp_path):
    path, ids, *_ = published(tmp_path, "plain")
    store, wide = read_wide(path, tmp_path / "store"), tmp_path / "wide.parquet"
    catalog = pd.DataFrame(dict(id_str=ids, ra=np.arange(len(ids)) * 1., dec=2.))
    with pytest.raises(InputError, match="no galaxy in common: .* there, 'h0' here"):
        write_wide(store, wide, "desi", catalog.assign(id_str=[f"h{i}" for i in range(len(ids))]))
    assert not wide.exists()
    with pytest.warns(UserWarning, match=f"2 of {len(ids)} galaxies are not in the catalog: their ra, dec stay blank"):
        write_wide(store, wide, "desi", catalog[2:])
    assert pd.read_parquet(wide).set_index("id_str").ra.isna().sum() == 2
    numbers = pd.DataFrame(dict(id_str=[str(i) for i in range(5)])).assign(**{f"feat_{i}": 1. * i for i in range(3)})
    numbers.to_parquet(tmp_path / "numbers.parquet")
    store = read_wide(tmp_path / "numbers.parquet", tmp_path / "numbers")
    write_wide(store, wide, "desi", pd.DataFrame(dict(id_str=range(5), ra=np.arange(5.), dec=2.)))   # ids as numbers are ids too
    assert pd.read_parquet(wide).ra.tolist() == [0, 1, 2, 3, 4]


def test_what_a_table_says_of_itself_may_be_damaged(tmp_path):
    path, *_ = published(tmp_path, "plain")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"gz_nbdev": "{torn"}), path)
    for call in (lambda: read_wide(path, tmp_path / "o"), lambda: read_meta(path)):
        with pytest.raises(InputError, match="'gz_nbdev', is damaged"): call()


def test_files_that_are_no_such_tables(tmp_path):
    path, ids, features, table = published(tmp_path, "plain")
    content = path.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[:-100])
    with pytest.raises(InputError, match="cut.parquet cannot be read"): read_wide(tmp_path / "cut.parquet", tmp_path / "o")
    with pytest.raises(InputError, match="gone.parquet cannot be read"): read_wide(tmp_path / "gone.parquet", tmp_path / "o")
    table[["id_str"]].to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(InputError, match="has no columns feat_0"): read_wide(tmp_path / "bare.parquet", tmp_path / "o")
    with pytest.raises(InputError, match="has no column 'name'"): read_wide(path, tmp_path / "o", id_column="name")
    assert not (tmp_path / "o").exists()
    store = read_wide(path, tmp_path / "store")
    with pytest.raises(InputError, match="No form is called 'dcals'"): write_wide(store, tmp_path / "w", "dcals")
    with pytest.raises(InputError, match="has the columns ra, dec"): write_wide(store, tmp_path / "w", "desi")
    catalog = pd.DataFrame(dict(id_str=["a", "a"], ra=1., dec=2.))
    with pytest.raises(InputError, match="more than once \\('a'\\)"): write_wide(store, tmp_path / "w", "desi", catalog)
    with pytest.raises(InputError, match="has no column 'dec'"):
        write_wide(store, tmp_path / "w", "desi", catalog.drop(columns="dec"))
    (tmp_path / "w").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"): write_wide(store, tmp_path / "no folder" / "w")
    assert (tmp_path / "w").read_text() == "mine" and not list(tmp_path.glob(".*tmp"))


def test_reading_goes_on_and_sets_nan_aside(tmp_path, monkeypatch):
    n = 20_000
    features = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    features[9000] = np.nan
    table = pd.DataFrame({"id_str": names(n), **{f"feat_{i}": features[:, i] for i in range(3)}})
    table.to_parquet(tmp_path / "a.parquet")
    whole = read_wide(tmp_path / "a.parquet", tmp_path / "whole")
    assert len(whole.shards) == 3 and len(whole) == n - 1 and whole.failures().id_str.tolist() == [names(n)[9000]]
    put, calls = module._put, []
    def stop(*args):
        calls.append(put(*args))
        if len(calls) == 2: raise KeyboardInterrupt
    monkeypatch.setattr(module, "_put", stop)
    with pytest.raises(KeyboardInterrupt): read_wide(tmp_path / "a.parquet", tmp_path / "parts")
    monkeypatch.undo()
    parts = read_wide(tmp_path / "a.parquet", tmp_path / "parts")
    assert table_of(parts) == table_of(whole)
    table.assign(feat_0=1.).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="file was"): read_wide(tmp_path / "a.parquet", tmp_path / "parts")


# Fewer numbers


def many(folder, n=900, width=24, shard=100, seed=0) -> Store:
    "A store of galaxies along six directions"
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, 6)) * [9, 7, 5, 4, 3, 2]) @ rng.normal(size=(6, width)) + rng.normal(size=(n, width)) / 9
    meta = dict(kind="representations", weights="abc", turns=1, dtype="float32", features=width, view=SMALL.to_dict())
    with Store(folder, meta) as store:
        for i in range(0, n, shard):
            ids = pa.table(dict(id_str=names(n)[i:i + shard]))
            store.write_shard(ids, features[i:i + shard].astype(np.float32))
        store.finish(names(n))
    return store


@pytest.mark.parametrize("shard", [7, 100, 900])
def test_components_are_those_of_all_rows_at_once(tmp_path, shard):
    store = many(tmp_path / "store", shard=shard)
    ids, features = store.read_features()
    fitted, known = fit_pca(store, 6), PCA(6, svd_solver="full").fit(features)
    assert np.allclose(np.abs(np.diag(fitted.components @ known.components_.T)), 1, atol=1e-3)
    assert np.allclose(fitted.ratio, known.explained_variance_ratio_, atol=1e-3)
    assert np.allclose(np.abs(fitted.transform(features)), np.abs(known.transform(features)), atol=0.5)
    loaded = Pca.load(store)
    assert (loaded.transform(features) == fitted.transform(features)).all() and loaded.hash == fitted.hash
    assert loaded.meta["galaxies"] == 900 and loaded.ratio.sum() > 0.99
    assert len(plot_explained(fitted).axes) == 2


def test_reduced_table(tmp_path, monkeypatch):
    store = many(tmp_path / "store")
    pca = fit_pca(store, 6)
    reduced = reduce_table(store, pca, tmp_path / "reduced")
    ids, features = store.read_features()
    assert reduced.read_features()[0] == ids
    assert np.allclose(reduced.read_features()[1], pca.transform(features), atol=1e-4)
    assert len(reduced.shards) == len(store.shards) and reduced.header["meta"]["weights"].startswith("abc-pca6-")
    a = GalaxyIndex(store, metric="euclidean", device="cpu").by_id(ids[:1], 5).id_str.tolist()
    b = GalaxyIndex(reduced, metric="euclidean", device="cpu").by_id(ids[:1], 5).id_str.tolist()
    assert len(set(a) & set(b)) >= 4
    put, calls = module._put, []
    def stop(*args):
        calls.append(put(*args))
        if len(calls) == 4: raise KeyboardInterrupt
    monkeypatch.setattr(module, "_put", stop)
    with pytest.raises(KeyboardInterrupt): reduce_table(store, pca, tmp_path / "parts")
    monkeypatch.undo()
    assert len(Store(tmp_path / "parts")) == 400
    assert table_of(reduce_table(store, pca, tmp_path / "parts")) == table_of(reduced)


def test_components_that_do_not_fit(tmp_path):
    store = many(tmp_path / "store", n=20)
    for count in (0, 21, 25):
        with pytest.raises(InputError, match="choose from 1 to 20"): fit_pca(store, count)
    with pytest.raises(InputError, match="no whole principal components"): Pca.load(store)
    pca = fit_pca(store, 3)
    with pytest.raises(InputError, match="of another encoder"): pca.transform(np.zeros((2, 25)))
    other = many(tmp_path / "other", n=20, seed=1)
    meta = dict(other.header["meta"], weights="xyz")
    meta.pop("version")
    with Store(tmp_path / "third", meta) as third:
        third.write_shard(pa.table(dict(id_str=["a"])), np.zeros((1, 24), np.float32))
    with pytest.raises(InputError, match="fitted with weights abc, .* xyz"): reduce_table(third, pca, tmp_path / "r")
    assert not (tmp_path / "r").exists()
    data = (tmp_path / "store" / "pca.safetensors").read_bytes()
    (tmp_path / "store" / "pca.safetensors").write_bytes(data[:-4] + b"abcd")
    with pytest.raises(InputError, match="do not belong together"): Pca.load(store)


def test_a_map_is_learned_from_a_sample(tmp_path, monkeypatch):
    store, fitted, placed = many(tmp_path / "store", n=300), [], []

    class UMAP:   # UMAP itself runs in the notebook; here, what is given to it
        def __init__(self, **options): self.options = options

        def fit(self, x):
            fitted.append(x)
            torch.set_num_threads(torch.get_num_threads() + 1)   # as numba does
            self.embedding_ = x[:, :2] + 1000
            return self

        def transform(self, x):
            placed.append(x)
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    threads = torch.get_num_threads()
    places = umap_places(store, sample=80, seed=1)
    assert torch.get_num_threads() == threads
    ids, features = store.read_features()
    learned = places.x.to_numpy() > 500
    assert places.id_str.tolist() == ids and learned.sum() == 80 == len(fitted[0]) and sum(map(len, placed)) == 220
    assert np.allclose(places[["x", "y"]].to_numpy()[learned] - 1000, features[learned, :2], atol=1e-3)
    assert (places[["x", "y"]].to_numpy()[~learned] == features[~learned, :2]).all()
    assert umap_places(store, sample=80, seed=1).equals(places)
    with pytest.raises(InputError, match="neighbours=80"): umap_places(store, sample=80, neighbours=80)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match="extra 'umap'"): umap_places(store, sample=80)


def test_what_failed_is_tried_again_when_the_job_is_started_anew(tmp_path):
    "A wrong root, then the right one; and one picture that comes late"
    table = pd.DataFrame({"id_str": names(12), "file_loc": [f"{i}.png" for i in range(12)]})
    (tmp_path / "wrong").mkdir(), (tmp_path / "right").mkdir()
    for i, picture in enumerate(pictures(12)):
        if i != 3: Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "right" / f"{i}.png")
    with pytest.raises(InputError, match="None of 12 galaxies could be done"):
        run(FolderImages(table, tmp_path / "wrong"), tmp_path / "out")
    right = FolderImages(table, tmp_path / "right")
    assert "11 written + 1 quarantined" in run(right, tmp_path / "out").summary
    Image.fromarray(pictures(12)[3].permute(1, 2, 0).numpy()).save(tmp_path / "right" / "3.png")
    store = run(right, tmp_path / "out")
    assert "12 written + 0 quarantined" in store.summary and not len(store.failures())
    assert not len(Store(tmp_path / "out").failures()) and not Store(tmp_path / "out").verify().errors


def test_f19_other_pictures_under_the_same_ids_are_refused(tmp_path):
    source = ArrayImages(names(12), pictures(12))
    run(source, tmp_path / "out")
    with pytest.raises(InputError, match="begun with another picture of"):
        run(ArrayImages(names(12), 255 - pictures(12)), tmp_path / "out")
    (tmp_path / "out" / "pictures.json").write_text('{"J0')   # cut short: noted anew
    assert "12 written" in run(source, tmp_path / "out").summary
    assert "14 written" in run(ArrayImages(names(14), pictures(14)), tmp_path / "out").summary   # a catalog may grow


def test_a_refused_job_forgets_no_failure(tmp_path):
    "Other pictures are refused before the quarantined are let out"
    bad = pictures(12)
    table = pd.DataFrame({"id_str": names(12), "file_loc": [f"{i}.png" for i in range(12)]})
    for i in range(11): Image.fromarray(bad[i].permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    assert "11 written + 1 quarantined" in run(FolderImages(table, tmp_path), tmp_path / "out").summary
    Image.fromarray(255 - bad[0].permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="begun with another picture of"): run(FolderImages(table, tmp_path), tmp_path / "out")
    assert Store(tmp_path / "out").failures().id_str.tolist() == [names(12)[11]]
