"""Queries a second of our search beside scikit-learn's ball tree, faiss, hnswlib and datasets, all in the same run

The figures to read are the ratios: rates depend on the machine and on what else it does.
"""
import argparse
import importlib.util
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

from gz_nbdev.search import GalaxyIndex

K = 10


def clustered(n: int, d: int, seed: int = 0):
    "Blocks of vectors in 100 clumps that overlap, each long in twelve directions of its own, as kinds of galaxies are"
    rng = np.random.default_rng(seed)
    centres, axes = rng.normal(size=(100, d)), rng.normal(size=(100, 12, d)) / np.sqrt(3)
    for start in range(0, n, 50_000):
        rows = min(50_000, n - start)
        which, out = rng.integers(0, 100, rows), rng.normal(scale=.3, size=(rows, d)).astype(np.float32)
        along = rng.normal(size=(rows, 12))
        for i in range(12): out += (along[:, i:i + 1] * axes[which, i]).astype(np.float32)
        yield out + centres[which].astype(np.float32)


def timed(function, count: int, seconds: float = 2.) -> tuple:
    "What it gives, and queries a second: the best of the repeats that fit into the time"
    function()
    best, began = np.inf, time.perf_counter()
    while best == np.inf or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        found = function()
        best = min(best, time.perf_counter() - start)
    return found, count / best


def recall(rows, truth) -> float:
    "Share of the true nearest that were found"
    return np.mean([np.isin(t, r).mean() for t, r in zip(truth, rows)])


def line(name: str, rate: float, reference: float, found: float = 1., build=None, single=None):
    "One row of the table"
    built = "" if build is None else f"  built in {build:.1f} s"
    alone = "" if single is None else f"  one query alone {1000 * single:.2f} ms"
    print(f"  {name:34s} {rate:10,.0f} queries/s = {rate / reference:8.2f} of exact  recall@{K} {found:.3f}{built}"
          f"{alone}", flush=True)


def alone(function, queries, n: int = 30) -> float:
    "Median seconds of a query by itself"
    took = []
    for i in range(n):
        start = time.perf_counter()
        function(queries[i:i + 1])
        took.append(time.perf_counter() - start)
    return float(np.median(took))


def faiss_at_recall(faiss, x, queries, truth, target: float, lists: int) -> tuple:
    "Plain IVF-Flat with as many probes as reach the recall: queries a second, recall, seconds to build"
    start = time.perf_counter()
    index = faiss.index_factory(x.shape[1], f"IVF{lists},Flat")
    index.cp.niter, index.cp.max_points_per_centroid = 10, 64   # as ours
    index.train(x)
    index.add(x)
    built, probe = time.perf_counter() - start, 1
    while True:
        index.nprobe = probe
        if (found := recall(index.search(queries, K)[1], truth)) >= target or probe >= lists: break
        probe = max(probe + 1, int(probe * 1.25))
    _, rate = timed(lambda: index.search(queries, K), len(queries))
    return rate, found, built, alone(lambda q: index.search(q, K), queries)


def hnsw_at_recall(x, queries, truth, target: float):
    "hnswlib with as wide a search as reaches the recall"
    import hnswlib
    start = time.perf_counter()
    index = hnswlib.Index("l2", x.shape[1])
    index.init_index(len(x), M=16, ef_construction=200, random_seed=0)
    index.add_items(x)
    built, ef = time.perf_counter() - start, 16
    while True:
        index.set_ef(ef)
        if (found := recall(index.knn_query(queries, K)[0], truth)) >= target or ef > 4000: break
        ef = int(ef * 1.2)
    _, rate = timed(lambda: index.knn_query(queries, K), len(queries))
    return rate, found, built, alone(lambda q: index.knn_query(q, K), queries)


def compare(n: int, d: int, queries: int, peers: set):
    "All of them on the same vectors"
    import faiss
    x = np.concatenate(list(clustered(n + queries, d)))
    x, q = x[:n], x[n:]
    print(f"{n:,} x {d}, {queries} queries, {faiss.omp_get_max_threads()} threads")
    table = ([str(i) for i in range(n)], x)
    exact = GalaxyIndex(table, metric="euclidean", engine="exact", device="cpu")
    (_, truth), base = timed(lambda: exact.neighbours(q, K), len(q))
    line("gz_nbdev exact", base, base, single=alone(lambda v: exact.neighbours(v, K), q))
    if "sklearn" in peers:
        from sklearn.neighbors import BallTree
        some, start = q[:20], time.perf_counter()
        tree = BallTree(x)
        built = time.perf_counter() - start
        found, rate = timed(lambda: tree.query(some, K)[1], len(some), 0)
        line("scikit-learn ball tree", rate, base, recall(found, truth), built)
        del tree
    if "faiss" in peers:
        flat = faiss.IndexFlatL2(d)
        flat.add(x)
        found, rate = timed(lambda: flat.search(q, K)[1], len(q))
        line("faiss flat", rate, base, recall(found, truth))
        del flat
    if "datasets" in peers:
        import datasets
        datasets.disable_progress_bars()
        data, start = datasets.Dataset.from_dict({"row": np.arange(n)}), time.perf_counter()
        data.add_faiss_index_from_external_arrays(x, "v")
        built = time.perf_counter() - start
        found, rate = timed(lambda: data.search_batch("v", q, K)[1], len(q))
        line("datasets.add_faiss_index defaults", rate, base, recall(found, truth), built)
        del data
    start = time.perf_counter()
    ours = GalaxyIndex(table, metric="euclidean", engine="approximate", device="cpu")
    built = time.perf_counter() - start
    (_, rows), rate = timed(lambda: ours.neighbours(q, K), len(q))
    reached = recall(rows, truth)
    line("gz_nbdev approximate", rate, base, reached, built, alone(lambda v: ours.neighbours(v, K), q))
    print(f"    {ours.approximate}")
    if "ivf" in peers:
        plain, found, built, single = faiss_at_recall(faiss, x, q, truth, reached, ours.approximate["lists"])
        line("faiss IVF-Flat at that recall", plain, base, found, built, single)
        print(f"    approximate: {rate / plain:.2f} of faiss IVF-Flat, {rate / base:.1f} of exact")
    if "hnsw" in peers and importlib.util.find_spec("hnswlib") is None: print("  hnswlib: skipped, it is not installed")
    elif "hnsw" in peers:
        theirs, found, built, single = hnsw_at_recall(x, q, truth, reached)
        line("hnswlib at that recall", theirs, base, found, built, single)
        print(f"    approximate: {rate / theirs:.2f} of hnswlib")


def memory(what: str) -> float:
    "GB: VmRSS is what is resident now, VmHWM what was at most"
    fields = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(fields[what].split()[0]) / 2**20


def write_survey(path: Path, n: int, d: int, queries: int):
    "A table of representations as one parquet file, and beside it galaxies of the same kinds to ask for"
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gz_nbdev.store import features_column
    at = 0
    schema = pa.schema([("id_str", pa.string()), ("features", pa.list_(pa.float32(), d))])
    with pq.ParquetWriter(path, schema) as writer:
        for block in clustered(n + queries, d):
            if at + len(block) > n: np.save(path.with_suffix(".npy"), block[max(n - at, 0):])
            block = block[:max(n - at, 0)]
            ids = pa.array([f"{at + i:018d}" for i in range(len(block))], pa.string())
            writer.write_table(pa.table({"id_str": ids, "features": features_column(block)}), row_group_size=50_000)
            at += len(block)


def open_survey(path: Path, what: str):
    "Build the index, or open the one that is there, and say what that takes"
    before, start = memory("VmRSS"), time.perf_counter()
    index = GalaxyIndex(path, metric="euclidean", engine="approximate", device="cpu")
    print(f"  {what} in {time.perf_counter() - start:.0f} s; resident {before:.2f} GB before (libraries), "
          f"{memory('VmRSS'):.2f} after, {memory('VmHWM'):.2f} at most", flush=True)
    return index


def survey(n: int, d: int, queries: int):
    "The whole of DESI from a parquet file: time to build and open, memory, one query, many queries"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "survey.parquet"
        print(f"{n:,} x {d}")
        for function, args in ((write_survey, (path, n, d, queries)), (open_survey, (path, "built"))):
            one = multiprocessing.get_context("spawn").Process(target=function, args=args)
            one.start()   # a process of its own, so that its memory is not counted
            one.join()
        index, q = open_survey(path, "opened"), np.load(path.with_suffix(".npy"))[:queries]
        print(f"  {index}, {index.approximate}")
        _, rate = timed(lambda: index.neighbours(q, K), len(q))
        single, by_id = alone(lambda v: index.neighbours(v, K), q), alone(lambda v: index.by_id(f"{n // 2:018d}"), q, 5)
        print(f"  {rate:,.0f} queries/s together, {1000 * single:.2f} ms alone, by id {1000 * by_id:.0f} ms; "
              f"resident {memory('VmRSS'):.2f} GB after the queries")


def main():
    "Print the tables"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, nargs="*", default=[40, 512])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--peers", nargs="*", default=["sklearn", "faiss", "datasets", "ivf"])
    parser.add_argument("--hnsw", type=int, default=100_000, help="galaxies x 512 beside hnswlib; 0: none")
    parser.add_argument("--survey", type=int, default=0, help="galaxies x 40 of a whole survey, 8700000; 0: none")
    args = parser.parse_args()
    for d in args.dims: compare(args.n, d, args.queries, set(args.peers))
    if args.hnsw: compare(args.hnsw, 512, args.queries, {"ivf", "hnsw"})
    if args.survey: survey(args.survey, 40, args.queries)


if __name__ == "__main__": main()
