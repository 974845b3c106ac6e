"Stores under faults: kills, damage, wrong continuations, bad servers (F1 and so on: the faults)"

import errno
import hashlib
import http.server
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import gz_nbdev.store as store_module
from gz_nbdev.catalog import read_table
from gz_nbdev.schema import InputError
from gz_nbdev.store import (
    Store,
    _manifest_text,
    atomic_write,
    download,
    download_zenodo,
    features_array,
    features_column,
    read_meta,
    sha256_file,
    write_parquet,
    write_table,
)

META = {"weights": "1f3c", "view": {"size": 64}}
IDS = [f"J{i:04d}" for i in range(60)]
CATALOG = pd.DataFrame({"id_str": IDS})
BROKEN = {IDS[7], IDS[30]}


def vector(name: str) -> np.ndarray:
    "A vector that only this galaxy has"
    return np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], np.uint8).astype(np.float32)


def work(store, shard: int = 10, pause: float = 0.0, catalog=CATALOG):
    "The job: a vector a galaxy, two of which are broken"
    todo = store.remaining(catalog).id_str.tolist()
    for start in range(0, len(todo), shard):
        batch = todo[start : start + shard]
        for name in BROKEN.intersection(batch):
            store.fail(name, "cut in half")
        good = [name for name in batch if name not in BROKEN]
        if good:
            store.write_shard(pd.DataFrame({"id_str": good}), np.stack([vector(name) for name in good]))
        time.sleep(pause)
    return store


def finished(root) -> Store:
    "A store with all of it"
    work(Store(root, META)).finish(IDS)
    return Store(root)


def is_right(root) -> None:
    "Every galaxy once, with its own vector, or quarantined"
    store = Store(root)
    ids, features = store.read_features()
    assert sorted([*ids, *store.failures().id_str]) == IDS and set(store.failures().id_str) == BROKEN
    for name, row in zip(ids, features):
        assert (row == vector(name)).all(), name
    assert store.verify().ok


def contents(root) -> pd.DataFrame:
    "What a store holds, whatever the order of its shards"
    ids, features = Store(root).read_features()
    return pd.DataFrame(features, index=ids).sort_index()


# Going on


def test_one_run_and_the_order_of_rows(tmp_path):
    summary = work(Store(tmp_path / "s", META)).finish(IDS)
    assert summary == "58 written + 2 quarantined = 60 galaxies, each once"
    is_right(tmp_path / "s")
    assert Store(tmp_path / "s").read().id_str.tolist() == [i for i in IDS if i not in BROKEN]
    assert "58 rows in 6 shards, 2 quarantined, finished" in repr(Store(tmp_path / "s"))
    assert [len(t) for t in Store(tmp_path / "s").tables(["id_str"])] == [9, 10, 10, 9, 10, 10]
    assert Store(tmp_path / "s").done_ids().tolist() == [i for i in IDS if i not in BROKEN] + sorted(BROKEN)


def test_f1_killed_at_random_moments(tmp_path):
    "SIGKILL whenever it comes; the table in the end is that of a run nobody disturbed"
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_store as t; from gz_nbdev.store import Store\n"
        "s = Store(sys.argv[1], t.META); print('go', flush=True); t.work(s, shard=4, pause=.04); print(s.finish(t.IDS))"
    )
    draw, kills = random.Random(5), 0   # fifteen pauses are longer than three waits, however fast the disk is
    for _ in range(30):
        job = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "killed", os.path.dirname(__file__)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert job.stdout.readline() == "go\n"
        try:
            job.wait(draw.uniform(0, 0.15) if kills < 3 else 60)
        except subprocess.TimeoutExpired:
            job.send_signal(signal.SIGKILL)
            kills += 1
        job.wait()
        job.stdout.close()
        if job.returncode == 0:
            break
    assert kills == 3 and job.returncode == 0
    is_right(tmp_path / "killed")
    finished(tmp_path / "quiet")
    pd.testing.assert_frame_equal(contents(tmp_path / "killed"), contents(tmp_path / "quiet"))
    assert not list((tmp_path / "killed").rglob("*.tmp"))


class Died(BaseException):
    "The end of a process, as seen from inside"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_f3_f32_dying_at_every_step_and_again_while_recovering(tmp_path, monkeypatch, call):
    real, steps = getattr(os, call), [0]

    def counted(*args):
        steps[0] -= 1
        if steps[0] == 0:
            raise Died
        return real(*args)

    monkeypatch.setattr(os, call, counted)
    small = CATALOG.head(12)
    for step in range(1, 40):
        root, died = tmp_path / str(step), []
        for again in (step, 2):  # die at this step, and at the second one of the next run
            steps[0] = again
            try:
                work(Store(root, META), shard=4, catalog=small).finish(small.id_str)
            except Died:
                died.append(again)
        steps[0] = 0
        work(Store(root, META), shard=4, catalog=small).finish(small.id_str)
        assert (
            sorted([*Store(root).read().id_str, *Store(root).failures().id_str]) == IDS[:12] and Store(root).verify().ok
        )
        if step not in died[:1]:
            break
    assert 5 < step < 39


def test_f31_running_twice_changes_nothing(tmp_path):
    before = finished(tmp_path / "s").header
    work(Store(tmp_path / "s", META)).finish(IDS)
    assert Store(tmp_path / "s").header == before
    is_right(tmp_path / "s")


def test_f5_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    store = Store(tmp_path / "s", META)
    store.write_shard(CATALOG.head(5))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"bytes\) cannot be written: No space"):
            store.write_shard(CATALOG[5:10])
    assert len(store) == 5 and not list((tmp_path / "s").rglob("*.tmp"))
    assert store.write_shard(CATALOG[5:10]) == 5 and Store(tmp_path / "s").verify().ok


def test_f7_output_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot be written to"):
        Store(tmp_path / "file", META)
    with pytest.raises(InputError, match="cannot be written to"):
        Store(tmp_path / "file" / "below", META)

    def read_only(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store_module, "_take_lock", read_only)
    with pytest.raises(InputError, match="Read-only file system. Choose another"):
        Store(tmp_path / "s", META)


# Locks


def hold(root, **changes) -> None:
    "A lock as another process would leave it"
    held = {
        "pid": 1,
        "host": store_module.socket.gethostname(),
        "start": store_module._process_start(1),
        "token": "x",
    } | changes
    (root / "lock").write_text(json.dumps(held))


def test_f9_second_writer_waits(tmp_path):
    finished(tmp_path)
    for held in (dict(), dict(pid=2**22 + 1, host="elsewhere")):
        hold(tmp_path, **held)
        with pytest.raises(InputError, match="is being written by process"):
            Store(tmp_path, META)
    assert len(Store(tmp_path)) == 58  # readers are free


@pytest.mark.parametrize(
    "changes", [dict(pid=2**22 + 1), dict(start="7"), "", "[]"], ids=["dead", "number used again", "empty", "nonsense"]
)
def test_f10_stale_lock_is_taken_over(tmp_path, changes):
    finished(tmp_path)
    hold(tmp_path, **changes) if isinstance(changes, dict) else (tmp_path / "lock").write_text(changes)
    with Store(tmp_path, META) as store:
        assert store._is_writer
    assert not (tmp_path / "lock").exists()


def test_who_lost_the_lock_writes_nothing(tmp_path):
    first = Store(tmp_path, META)
    second = Store(tmp_path, META)  # the same process: a cell that was run again
    with pytest.raises(InputError, match="not open for writing"):
        first.write_shard(CATALOG.head(3))
    first.close()
    assert second.write_shard(CATALOG.head(3)) == 3 and len(list((tmp_path / "shards").iterdir())) == 1
    second.close()
    for change in (lambda s: s.write_shard(CATALOG[3:6]), lambda s: s.repair(), lambda s: s.finish(IDS[:3])):
        with pytest.raises(InputError, match="not open for writing"):
            change(Store(tmp_path))


def test_a_job_that_fails_lets_go_of_the_lock_and_keeps_its_failures(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with Store(tmp_path, META) as store:
            store.fail(IDS[0], "unreadable")
            raise ZeroDivisionError
    assert not (tmp_path / "lock").exists() and Store(tmp_path).failures().id_str.tolist() == IDS[:1]


# What may not be mixed


@pytest.mark.parametrize(
    "meta,said",
    [
        (META | {"weights": "77aa"}, "weights was 1f3c, now is 77aa"),
        (META | {"view": {"size": 96}}, "view was {'size': 64}"),
        ({"weights": "1f3c"}, "view was .*, now is None"),
        (META | {"version": "99"}, "version was"),
        (META | {"more": 1}, "more was None"),
    ],
)
def test_f21_other_weights_views_versions_are_refused(tmp_path, meta, said):
    finished(tmp_path)
    with pytest.raises(InputError, match=said):
        Store(tmp_path, meta)
    assert not (tmp_path / "lock").exists()
    is_right(tmp_path)


def test_f22_other_formats_are_refused(tmp_path):
    store = finished(tmp_path)
    atomic_write(tmp_path / "manifest.jsonl", _manifest_text(store.header | {"format": 2}, store.shards))
    with pytest.raises(InputError, match="has format 2"):
        Store(tmp_path)


def test_f20_catalog_that_changed(tmp_path):
    work(Store(tmp_path / "a", META)).finish(IDS[::-1])  # another order is the same catalog
    store = work(Store(tmp_path / "b", META))
    with pytest.raises(InputError, match=r"neither written nor quarantined: 1 \(new\)"):
        store.finish([*IDS, "new"])
    with pytest.raises(InputError, match=r"not in the input: 1 \(J0059\)"):
        store.finish(IDS[:-1])
    with pytest.raises(InputError, match=r"twice in the input: 1 \(J0000\)"):
        store.finish([*IDS, IDS[0]])
    assert store.finish(IDS).startswith("58 written")


@pytest.mark.parametrize(
    "table,said",
    [
        (pd.DataFrame({"id_str": ["a", "a"]}), "ids come twice in one shard: a"),
        (pd.DataFrame({"id_str": ["a", ""]}), "without an id"),
        (pd.DataFrame({"id_str": [1, 2]}), "'id_str' is int64"),
        (pd.DataFrame({"x": [1]}), "needs 'id_str'"),
        (pd.DataFrame({"id_str": [IDS[0], "z"]}), "1 ids are in the store already: J0000"),
        (pd.DataFrame({"id_str": [IDS[7]]}), "in the store already"),
        (pd.DataFrame({"id_str": ["z"], "y": [1]}), "other columns"),
    ],
)
def test_rows_that_do_not_belong(tmp_path, table, said):
    store = work(Store(tmp_path, META))
    with pytest.raises(InputError, match=said):
        store.write_shard(table)
    assert len(store) == 58 and Store(tmp_path).verify().ok


def test_failures(tmp_path):
    store = work(Store(tmp_path, META))
    with pytest.raises(InputError, match="in the store already"):
        store.fail(IDS[0], "late")
    with pytest.raises(InputError, match="in the store already"):
        store.fail(IDS[7], "again")
    store.finish(IDS)
    (tmp_path / "failures.parquet").unlink()  # a disk was mounted late: try again
    assert "missing or not what was written" in str(Store(tmp_path).verify())
    with Store(tmp_path, META) as again:
        assert again.remaining(CATALOG).id_str.tolist() == sorted(BROKEN)


def test_everything_failed(tmp_path):
    store = Store(tmp_path, META)
    for name in IDS:
        store.fail(name, "no such file")
    with pytest.raises(InputError, match="None of 60 galaxies could be done.*no such file"):
        store.finish(IDS)
    assert len(Store(tmp_path).failures()) == 60


def test_f17_what_is_not_finite_is_quarantined(tmp_path):
    store, features = Store(tmp_path, META), np.ones((4, 3), np.float16)
    features[1, 0], features[3, 2] = np.nan, np.inf
    assert store.write_shard(CATALOG.head(4), features) == 2
    assert store.finish(IDS[:4]) == "2 written + 2 quarantined = 4 galaxies, each once"
    ids, kept = Store(tmp_path).read_features()
    assert ids == [IDS[0], IDS[2]] and kept.dtype == np.float16 and np.isfinite(kept).all()
    assert Store(tmp_path).failures().id_str.tolist() == [IDS[1], IDS[3]]


def test_numbers_as_ids_are_not_looked_up(tmp_path):
    with pytest.raises(InputError, match="ids are numbers"):
        Store(tmp_path, META).remaining(pd.DataFrame({"id_str": [1]}))


def test_empty_and_missing_stores(tmp_path):
    with pytest.raises(InputError, match="There is no store"):
        Store(tmp_path)
    Store(tmp_path, META).close()
    assert len(Store(tmp_path)) == 0 and Store(tmp_path).read().columns.tolist() == ["id_str"]
    with pytest.raises(InputError, match="has no features"):
        Store(tmp_path).read_features()
    assert Store(tmp_path, META).finish([]) == "0 written + 0 quarantined = 0 galaxies, each once"


def test_columns_of_a_table(tmp_path):
    store = Store(tmp_path, META)
    store.write_shard(pd.DataFrame({"score": [0.5], "id_str": ["a"], "note": ["x"]}))
    assert store.read().columns.tolist() == ["id_str", "score", "note"] and store.read(["score"]).score.tolist() == [
        0.5
    ]
    with pytest.raises(InputError, match="has no 'scores': did you mean 'score'"):
        store.read(["scores"])
    assert read_meta(tmp_path / "shards" / "00000.parquet")["weights"] == "1f3c"


# Damage


def test_f27_any_flipped_bit_is_found(tmp_path):
    finished(tmp_path)
    path, draw = tmp_path / "shards" / "00002.parquet", random.Random(0)
    good = path.read_bytes()
    for _ in range(60):
        bits, place = bytearray(good), draw.randrange(8 * len(good))
        bits[place // 8] ^= 1 << place % 8
        path.write_bytes(bits)
        assert Store(tmp_path).verify().errors[0].examples == ("00002.parquet",)
        with pytest.raises(InputError, match="00002.parquet is not what was written"):
            Store(tmp_path).read()
        with pytest.raises(InputError, match="00002.parquet"):
            Store(tmp_path, META).remaining(CATALOG)


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1]), lambda p: p.write_bytes(b"")]
)
def test_f28_only_what_is_damaged_is_made_again(tmp_path, damage):
    store = finished(tmp_path)
    untouched = {s["name"]: s["sha256"] for s in store.shards if s["name"] != "00003.parquet"}
    damage(tmp_path / "shards" / "00003.parquet")
    assert "00003.parquet" in str(Store(tmp_path).verify().errors[0])
    with Store(tmp_path, META) as store:
        assert store.repair() == ["00003.parquet"] and len(store.remaining(CATALOG)) == 9
        work(store).finish(IDS)
    assert untouched.items() <= {s["name"]: s["sha256"] for s in Store(tmp_path).shards}.items()
    is_right(tmp_path)


def test_f28_copies_and_foreign_files_are_named_and_not_read(tmp_path):
    finished(tmp_path)
    shutil.copy(tmp_path / "shards" / "00001.parquet", tmp_path / "shards" / "00077.parquet")
    (tmp_path / "shards" / "notes.txt").write_text("mine")
    [warning] = Store(tmp_path).verify().warnings
    assert warning.examples == ("00077.parquet", "notes.txt")
    is_right(tmp_path)


def test_f29_manifest_cut_or_changed_is_refused(tmp_path):
    finished(tmp_path)
    path = tmp_path / "manifest.jsonl"
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    cuts = [good[:n] for n in range(0, len(good) - 1, 97)] + [
        b"".join(lines[:n] + lines[n + 1 :]) for n in range(len(lines))
    ]
    flips = [good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :] for n in range(0, len(good) - 1, 53)]
    for bad in [*cuts, *flips, b"\xff\xfe", b"null\n", b"[" * 100_000]:
        path.write_bytes(bad)
        with pytest.raises(InputError, match="damaged"):
            Store(tmp_path)
    path.write_bytes(good)
    is_right(tmp_path)


def test_f29_old_copy_of_the_manifest_costs_work_and_no_rows(tmp_path):
    store = Store(tmp_path, META)
    store.write_shard(CATALOG[:5], np.stack([vector(name) for name in IDS[:5]]))
    old = (tmp_path / "manifest.jsonl").read_bytes()
    work(store).finish(IDS)
    (tmp_path / "manifest.jsonl").write_bytes(old)
    assert len(Store(tmp_path)) == 5
    work(Store(tmp_path, META)).finish(IDS)
    is_right(tmp_path)


def signed(*lines: str) -> str:
    body = "".join(f"{line}\n" for line in lines)
    return body + json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest()}) + "\n"


HEADER = '{"format": 1, "meta": {}, "columns": null, "failures": null, "finished": null}'
SHARD = '{"name": "00000.parquet", "rows": 1, "ids": "", "sha256": "%s"}' % ("0" * 64)


@pytest.mark.parametrize(
    "lines",
    [
        ['{"format": 1}'],
        [HEADER, SHARD, SHARD],
        [HEADER, SHARD.replace("00000", "../../x")],
        [HEADER, SHARD.replace("1,", "NaN,")],
        [HEADER, SHARD.replace('"rows": 1', '"rows": 1, "rows": 2')],
        [HEADER, "[" * 100_000],
        [HEADER, "7"],
        ["[]"],
        [],
        [HEADER, SHARD.replace("0" * 64, "0")],
        [HEADER, SHARD.replace("1,", '"1",')],
    ],
)
def test_i52_hostile_manifests(tmp_path, lines):
    (tmp_path / "manifest.jsonl").write_text(signed(*lines))
    with pytest.raises(InputError):
        Store(tmp_path)


# Single tables


def test_write_parquet(tmp_path):
    path = write_parquet(
        tmp_path / "t.parquet", pd.DataFrame({"x": [1.0], "id_str": ["a"]}), {"n": np.int64(3)}, np.ones((1, 4))
    )
    table = pa.parquet.read_table(path)
    assert table.column_names == ["id_str", "x", "features"] and features_array(table["features"]).shape == (1, 4)
    assert read_meta(path) == {"version": store_module.__version__, "n": 3}
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "plain.parquet")
    assert read_meta(tmp_path / "plain.parquet") == {}
    with pytest.raises(InputError, match="fit into JSON"):
        write_parquet(path, CATALOG, {"loss": float("nan")})
    with pytest.raises(InputError, match="3 vectors for 60 ids"):
        write_parquet(path, CATALOG, {}, np.ones((3, 2)))


def test_features_columns():
    values = np.arange(12, dtype=np.float64).reshape(4, 3)
    column = features_column(values)
    assert (
        column.type == pa.list_(pa.float32(), 3)
        and (features_array(pa.chunked_array([column[:1], column[1:]])) == values).all()
    )
    with pytest.raises(InputError, match="array of floats"):
        features_column(np.ones(3))
    with pytest.raises(InputError, match="vectors of one length"):
        features_array(pa.array([[1.0], [1.0, 2.0]]))


def test_atomic_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = atomic_write(tmp_path / "a.txt", "old")

    def broken(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(InputError, match="Input/output error. What was there before is whole"):
        atomic_write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# Downloads

PAYLOAD = np.random.default_rng(0).bytes(50_000)
SHA = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.fixture
def serve():
    "A server with a plan: what it does at each request"
    servers = []

    def start(*plan):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                step, span = plan[min(len(asked), len(plan) - 1)], self.headers.get("Range")
                asked.append(span)
                begin = int(span[6:-1]) if span and step != "whole" else 0
                if isinstance(step, int) and step >= 400:
                    return self.send_error(step)
                body = b"<html>please log in</html>" if step == "page" else PAYLOAD[begin:]
                self.send_response(206 if begin else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:15_000])
                if isinstance(step, threading.Event):
                    step.wait(20)
                if step != "cut":
                    self.wfile.write(body[15_000:])

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/file", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def get(url, dest, sha=SHA, **options):
    return download(url, dest, sha, wait=0.001, progress=False, **options)


@pytest.mark.parametrize(
    "plan", [["good"], ["cut", "good"], ["cut", "cut", "cut", "good"], [503, "cut", 429, "good"], ["cut", "whole"]]
)
def test_f24_f26_downloads_come_through(tmp_path, serve, plan):
    url, asked = serve(*plan)
    assert get(url, tmp_path / "new" / "file").read_bytes() == PAYLOAD
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file"] and len(asked) == len(plan)
    get(url, tmp_path / "new" / "file")  # it is there: nothing is asked
    assert len(asked) == len(plan)


def test_f24_goes_on_in_the_next_call(tmp_path, serve):
    url, asked = serve("cut", 404, "good")
    with pytest.raises(InputError, match="answers 404"):
        get(url, tmp_path / "file")
    assert get(url, tmp_path / "file").read_bytes() == PAYLOAD and asked == [None, "bytes=15000-", "bytes=15000-"]


def test_f25_wrong_bytes_are_not_kept(tmp_path, serve):
    for plan in (["page"], ["cut", "page"]):
        url, asked = serve(*plan)
        with pytest.raises(InputError, match="Nothing was kept|could not be had"):
            get(url, tmp_path / "file", retries=1)
        assert not (tmp_path / "file").exists()
    url, _ = serve("good")
    with pytest.raises(InputError, match="another sha256 than 000000000000"):
        get(url, tmp_path / "other", "0" * 64)
    assert not list(tmp_path.glob("*other*"))


def test_f25_a_wrong_beginning_from_an_earlier_call_is_thrown_away(tmp_path, serve):
    (tmp_path / f".file.{SHA[:12]}.part").write_bytes(b"x" * 100)
    url, asked = serve("good")
    assert get(url, tmp_path / "file").read_bytes() == PAYLOAD and asked == ["bytes=100-", None]


def test_two_jobs_that_want_one_file(tmp_path, serve):
    "The second waits for the first, and asks nobody"
    go = threading.Event()
    url, asked = serve(go, "good")
    results, dest = [], tmp_path / "new" / "file"

    def job():
        try:
            results.append(get(url, dest).read_bytes() == PAYLOAD)
        except Exception as e:
            results.append(e)

    jobs = [threading.Thread(target=job) for _ in range(2)]
    part = dest.with_name(f".file.{SHA[:12]}.part")
    jobs[0].start()
    while not part.exists() and not results:  # the server is in the middle of it
        time.sleep(0.01)
    jobs[1].start()
    jobs[1].join(0.5)
    go.set()
    for one in jobs:
        one.join()
    assert results == [True, True] and asked == [None]
    assert [p.name for p in dest.parent.iterdir()] == ["file"]


def test_a_part_that_went_away_is_no_crash(tmp_path, serve, monkeypatch):
    "Another program tidies up while the bytes are looked at"
    whole = store_module._is_whole

    def tidied(path, promised):
        if path.suffix == ".part":
            path.unlink()
        return whole(path, promised)

    monkeypatch.setattr(store_module, "_is_whole", tidied)
    with pytest.raises(InputError, match="Nothing was kept"):
        get(serve("good")[0], tmp_path / "file")


def test_a_folder_that_cannot_be_locked(tmp_path, serve):
    (tmp_path / f".file.{SHA[:12]}.lock").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        get(serve("good")[0], tmp_path / "file")


def test_f26_a_server_that_stays_away(tmp_path, serve):
    url, asked = serve(503)
    with pytest.raises(InputError, match="in 3 attempts: the server answers 503"):
        get(url, tmp_path / "file", retries=2)
    assert len(asked) == 3
    with pytest.raises(InputError, match="could not be had"):
        get("http://127.0.0.1:9/file", tmp_path / "file", retries=0)


@pytest.mark.parametrize(
    "url,sha,said", [("file:///etc/passwd", SHA, "Not a web address"), ("http://127.0.0.1/x", "abc", "64 hexa")]
)
def test_downloads_that_cannot_be(tmp_path, url, sha, said):
    with pytest.raises(InputError, match=said):
        get(url, tmp_path / "file", sha)


def test_download_into_a_file(tmp_path, serve):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        get(serve("good")[0], tmp_path / "file" / "below")


def test_sha256_file(tmp_path):
    (tmp_path / "f").write_bytes(PAYLOAD)
    assert sha256_file(tmp_path / "f") == SHA


# Tables in other formats

ODD = pd.DataFrame({
    "id_str": ["587722981741363294", "00123", "NA", "1E5", "Ångström 星", "<b>&\"x\", y"],
    "objid": pd.array([587722981741363323, None, 1, 2, 3, -4], dtype="Int64"),
    "ra": [0.1 + 0.2, np.nan, 1e-300, -0.0, 359.99999999999994, np.inf],
    "votes": np.arange(6, dtype=np.int32), "ring": [True, False, True, True, False, False],
    "note": ["plain", "", "a\tb", "ümläut", "x, y", "'q'"],
    "score": np.array([0, 1, 2, 3, np.nan, 0.1], np.float32)})


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".fits", ".vot", ".xml", ".FITS"])
def test_tables_come_back_as_they_were(tmp_path, suffix):
    path = write_table(tmp_path / f"t{suffix}", ODD, META)
    back = read_table(path)
    assert back["id_str"].tolist() == ODD["id_str"].tolist()
    assert back["objid"].tolist() == ["587722981741363323", "", "1", "2", "3", "-4"]
    np.testing.assert_array_equal(back["ra"], ODD["ra"])
    np.testing.assert_array_equal(back["score"].to_numpy(np.float32), ODD["score"])
    assert back["votes"].tolist() == list(range(6)) and back["ring"].tolist() == ODD["ring"].tolist()
    assert back["note"].fillna("").tolist() == ODD["note"].tolist()
    assert read_meta(path).get("weights") == (None if suffix == ".csv" else "1f3c")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_numbers_that_only_look_whole_stay_exact(tmp_path):
    "A count beyond 2^53 that is no id, beside a missing one"
    table = pd.DataFrame({"id_str": ["a", "b"], "healpix": pd.array([2**60 + 1, None], dtype="Int64")})
    for suffix in (".parquet", ".fits", ".vot"):
        back = read_table(write_table(tmp_path / f"t{suffix}", table))
        assert str(back["healpix"].iloc[0]) == str(2**60 + 1) or suffix == ".parquet", suffix


def test_what_a_table_cannot_be(tmp_path):
    with pytest.raises(InputError, match="no writer for '.xlsx'"): write_table(tmp_path / "t.xlsx", ODD)
    with pytest.raises(InputError, match="no writer for 'a name without"): write_table(tmp_path / "t", ODD)
    with pytest.raises(InputError, match="needs 'id_str'"): write_table(tmp_path / "t.csv", ODD.drop(columns="id_str"))
    with pytest.raises(InputError, match="Ids are text"): write_table(tmp_path / "t.fits", ODD.assign(id_str=1.5))
    table = pa.table({"id_str": ["a"], "features": features_column(np.ones((1, 3), np.float32))})
    with pytest.raises(InputError, match="'features' has more"): write_table(tmp_path / "t.fits", table)
    assert write_table(tmp_path / "t.parquet", table).exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".fits", ".vot"])
def test_columns_that_make_no_table(tmp_path, suffix):
    path, frame = tmp_path / f"t{suffix}", pd.DataFrame({"id_str": ["a", "b"], "x": [1, 2]})
    with pytest.raises(InputError, match="column x .*one kind"): write_table(path, frame.assign(x=[1, "u"]))
    with pytest.raises(InputError, match="one kind"): write_table(path, frame.assign(id_str=pd.Series(["a", "\ud800"], dtype=object)))
    twice = pd.DataFrame([["a", 1, 2]], columns=["id_str", "x", "x"])
    for table in (twice, pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], names=list(twice))):
        with pytest.raises(InputError, match="column 'x' comes twice"): write_table(path, table)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("suffix", [".fits", ".vot"])
def test_whole_numbers_of_every_kind(tmp_path, suffix, kind):
    ends = [int(np.iinfo(kind).min) + (kind == "int64"), int(np.iinfo(kind).max)]   # FITS keeps the least for 'missing'
    frame = pd.DataFrame({"id_str": ["a", "b", "c"], "x": np.array([*ends, 1], kind)})
    assert [int(v) for v in read_table(write_table(tmp_path / f"t{suffix}", frame)).x] == [*ends, 1]
    if kind != "uint64":
        gap = frame.assign(x=pd.array([None, 5, 7], dtype=kind.replace("i", "I", 1).replace("uI", "UI")))
        back = read_table(write_table(tmp_path / f"t{suffix}", gap)).x
        assert back.isna().tolist() == [True, False, False] and back.dropna().tolist() == [5, 7]


@pytest.mark.parametrize("suffix,text", [(".vot", "a\x01b"), (".vot", "a\rb"), (".vot", "a\ufffeb"), (".vot", " a"), (".vot", "a "),
                                         (".fits", "a "), (".fits", "a\x00"), (".fits", "a\n")])
def test_ids_that_a_format_would_change(tmp_path, suffix, text):
    frame = pd.DataFrame({"id_str": ["x", text]})
    with pytest.raises(InputError, match=f"t{suffix}.*{re.escape(repr(text))} in column 'id_str', row 1.*parquet"):
        write_table(tmp_path / f"t{suffix}", frame)
    assert read_table(write_table(tmp_path / "t.parquet", frame)).id_str.tolist() == ["x", text]
    assert len(list(tmp_path.iterdir())) == 1


def test_other_text_and_names_that_a_format_cannot_hold(tmp_path):
    frame = pd.DataFrame({"id_str": ["a"], "note": ["b\x01 "]})
    with pytest.raises(InputError, match="in column 'note', row 0"): write_table(tmp_path / "t.vot", frame)
    assert write_table(tmp_path / "t.fits", frame).exists()
    with pytest.raises(InputError, match="column 'größe'"): write_table(tmp_path / "t.fits", frame.rename(columns={"note": "größe"}))


def test_a_table_of_no_rows(tmp_path):
    for suffix in (".parquet", ".csv", ".fits", ".vot"):
        assert list(read_table(write_table(tmp_path / f"t{suffix}", ODD[:0]))["id_str"]) == []


# Zenodo

@pytest.fixture
def zenodo(serve, monkeypatch):
    "A record whose one file is served by the plan: (address of the api, what was asked)"
    def start(*plan, about=None, **changes):
        url, asked = serve(*plan)
        entry = dict(key="votes.csv", size=len(PAYLOAD), checksum=f"md5:{hashlib.md5(PAYLOAD).hexdigest()}", links={"self": url})
        answer = dict(files=[{**entry, **changes}]) if about is None else about
        def ask(address, *args):
            asked.append(address)
            return answer
        monkeypatch.setattr(store_module, "_ask", ask)
        return asked
    return start


def from_zenodo(folder, file="votes.csv", **kwargs):
    return download_zenodo(4573248, file, folder, wait=0.001, progress=False, **kwargs)


def test_zenodo_goes_on_where_it_was_cut_and_asks_once(zenodo, tmp_path):
    asked = zenodo("cut", "cut", "cut", "ok")
    path = from_zenodo(tmp_path)
    assert path.read_bytes() == PAYLOAD and asked == ["https://zenodo.org/api/records/4573248", None, "bytes=15000-", "bytes=30000-"]
    assert from_zenodo(tmp_path) == path and len(asked) == 4            # whole: nobody is asked
    path.write_bytes(PAYLOAD[:-1])
    assert from_zenodo(tmp_path).read_bytes() == PAYLOAD and len(asked) > 4   # damaged since: had again


@pytest.mark.parametrize("changes", [dict(checksum="md5:" + "0" * 32), dict(size=7)])
def test_zenodo_bytes_that_were_not_promised(zenodo, tmp_path, changes):
    zenodo("ok", **changes)
    with pytest.raises(InputError, match="Nothing was kept"): from_zenodo(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_zenodo_pages_and_errors(zenodo, tmp_path):
    zenodo("page")
    with pytest.raises(InputError, match="this is an error page. Nothing was kept"): from_zenodo(tmp_path)
    zenodo(404)
    with pytest.raises(InputError, match="answers 404"): from_zenodo(tmp_path)
    zenodo(503, 503, "ok")
    assert from_zenodo(tmp_path).read_bytes() == PAYLOAD


def test_zenodo_pinned_by_sha256(zenodo, tmp_path):
    zenodo("ok")
    with pytest.raises(InputError, match="Nothing was kept"): from_zenodo(tmp_path, sha256="0" * 64)
    asked = zenodo("ok")
    assert from_zenodo(tmp_path, sha256=SHA).read_bytes() == PAYLOAD
    (tmp_path / ".votes.csv.zenodo.json").unlink()
    del asked[:]
    assert from_zenodo(tmp_path, sha256=SHA).exists() and asked == []


@pytest.mark.parametrize("about", [{}, {"files": None}, [], {"message": "closed"}])
def test_zenodo_answers_that_are_no_record(zenodo, tmp_path, about):
    zenodo("ok", about=about)
    with pytest.raises(InputError, match="lists no files"): from_zenodo(tmp_path)


@pytest.mark.parametrize("changes", [dict(checksum="sha1:00"), dict(size="7"), dict(links={}), dict(checksum=None)])
def test_zenodo_entries_of_another_form(zenodo, tmp_path, changes):
    zenodo("ok", **changes)
    with pytest.raises(InputError, match="has changed"): from_zenodo(tmp_path)


@pytest.mark.parametrize("file", ["../x", "a/b", "..\\x", "", "."])
def test_zenodo_names_of_files(tmp_path, file):
    with pytest.raises(InputError, match="no name of a file"): from_zenodo(tmp_path, file)
    with pytest.raises(InputError, match="is a number"): download_zenodo("../4", "votes.csv", tmp_path)


def test_zenodo_near_names(zenodo, tmp_path):
    zenodo("ok")
    with pytest.raises(InputError, match="did you mean 'votes.csv'"): from_zenodo(tmp_path, "vote.csv")


def test_the_api_over_http(tmp_path):
    "JSON, a page in its place, 404, and a server that is gone"
    answers = {"/1": (200, b'{"files": []}'), "/2": (200, b"<html>"), "/3": (404, b"")}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            code, body = answers[self.path]
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args): pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    api = f"http://127.0.0.1:{server.server_port}"
    for record, said in ((1, "has no file 'x'"), (2, "gave no JSON"), (3, "answers 404")):
        with pytest.raises(InputError, match=said): download_zenodo(record, "x", tmp_path, api=api, wait=0.001, progress=False)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="could not be had in 2 attempts"):
        download_zenodo(1, "x", tmp_path, api=api, retries=1, wait=0.001, timeout=2, progress=False)


@pytest.mark.parametrize("name", ["GZ_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_names_the_file_and_the_page(zenodo, tmp_path, monkeypatch, name):
    asked = zenodo("ok")
    monkeypatch.setenv(name, "1")
    with pytest.raises(InputError, match="votes.csv is missing.*https://zenodo.org/records/4573248/files/votes.csv.*put it there"):
        from_zenodo(tmp_path)
    with pytest.raises(InputError, match="offline"): get("http://127.0.0.1:1/x", tmp_path / "x")
    (tmp_path / "votes.csv").write_bytes(PAYLOAD)        # fetched by hand
    with pytest.warns(UserWarning, match="nobody can say whether it is whole"): assert from_zenodo(tmp_path).exists()
    assert from_zenodo(tmp_path, sha256=SHA).exists()
    with pytest.raises(InputError, match="not whole"): from_zenodo(tmp_path, sha256="0" * 64)
    assert asked == []
    monkeypatch.setenv(name, "0")
    assert from_zenodo(tmp_path).exists() and asked == ["https://zenodo.org/api/records/4573248"]   # verified, not fetched
    monkeypatch.setenv(name, "1")
    assert from_zenodo(tmp_path).exists()


def test_a_folder_that_is_a_link_is_replaced_more_than_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("kept")
    (tmp_path / "index").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for text in "ab":
        (tmp_path / "fresh").mkdir()
        (tmp_path / "fresh" / "numbers").write_text(text)
        store_module._replace_folder(tmp_path / "fresh", tmp_path / "index")
    assert (tmp_path / "index" / "numbers").read_text() == "b" and (tmp_path / "elsewhere" / "mine").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "index"]


@pytest.mark.parametrize("kind", ["category", "large"])
def test_text_of_every_kind_is_looked_at(tmp_path, kind):
    text = pd.Categorical(["x\x01", "y"]) if kind == "category" else pd.array(["x\x01", "y"], pd.ArrowDtype(pa.large_string()))
    with pytest.raises(InputError, match="would not give back"): write_table(tmp_path / "b.vot", pd.DataFrame(dict(id_str=["a", "b"], k=text)))
