"""Pictures a second of the loader, beside zoobot's `CatalogDataModule` with two workers, in the same run.

Three roads for every view: decoding alone (threads that read and decode, nothing kept), the first epoch (decoded,
written to a cache on the disk, delivered as batches) and later epochs (bytes from the mapped file, shuffled). The arms
take turns, so that whatever else the machine does falls on all; each is a process of its own. On a machine that does
much else, processor time says more than the clock: `by cpu` is the share of decoding in all that the first epoch took
of the cores. The cache reaches the disk behind the first epoch: `flushed` is the share if one waits for that. Zoobot
is found through ZOOBOT_PYTHON, the interpreter of an environment that has it.

    GZ_DATA=... ZOOBOT_PYTHON=... python tests/bench/bench_loader.py --rows 2890 --repeats 5
"""
import argparse
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

VIEWS = [(128, 1.), (128, .5), (224, 1.), (224, .5)]


def peak() -> tuple:
    "Largest resident memory of this process, and what of it is its own now, MB; pages of mapped files are not"
    status = Path("/proc/self/status").read_text()
    return tuple(int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1e3 for name in ("VmHWM", "RssAnon"))


def table(root: Path, rows: int):
    "The same files over and over, under other ids"
    import pandas as pd
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))
    return pd.DataFrame([(f"g{i:07}", files[i % len(files)]) for i in range(rows)], columns=["id_str", "file_loc"])


def source_of(args):
    from gz_nbdev.data import FolderImages, View
    return FolderImages(table(args.root, args.rows), args.root), View(args.size, args.crop)


def decode_only(args) -> dict:
    "Read and decode in a pool of threads, one a core; nothing is kept"
    from concurrent.futures import ThreadPoolExecutor

    from fastcore.basics import chunked
    from gz_nbdev.data import decode
    source, view = source_of(args)
    def work(rows):
        for i in rows: decode(source.read(i), view)
    work(range(64))
    with ThreadPoolExecutor(args.threads) as pool:
        start, cpu = time.perf_counter(), time.process_time()
        list(pool.map(work, chunked(range(args.rows), 8)))
        return dict(rate=args.rows / (time.perf_counter() - start), cpu=time.process_time() - cpu)


def loader(pixels, args):
    "Shuffled batches of bytes, as training takes them before augmentation"
    import torch
    from gz_nbdev.data import GalaxyDL, GalaxyItems
    n = len(pixels)
    items = GalaxyItems(pixels.pixels, pixels.ids, torch.arange(n), torch.zeros(n), 0, pixels.view)
    return GalaxyDL(items, bs=args.batch, shuffle=True, device="cpu")


def epochs(args) -> dict:
    "The first epoch, from files to a cache and its batches; then later ones"
    from gz_nbdev.data import decode, load_pixels
    source, view = source_of(args)
    for i in range(64): decode(source.read(i), view)   # every lazy import is done
    folder = tempfile.mkdtemp(dir=args.cache)
    def deliver(dl): return sum(x.shape[0] for x, _ in dl)
    try:
        start, cpu = time.perf_counter(), time.process_time()
        pixels = load_pixels(source, view, folder, threads=args.threads, progress=False)
        dl = loader(pixels, args)
        seen = deliver(dl)
        first, cpu, later = time.perf_counter() - start, time.process_time() - cpu, []
        assert seen == args.rows == len(pixels), "a picture was lost"
        while not (pixels.folder / "flushed").exists(): time.sleep(.001)
        disk = time.perf_counter() - start
        for _ in range(5):
            start = time.perf_counter()
            deliver(dl)
            later.append(time.perf_counter() - start)
        return dict(rate=args.rows / first, disk=args.rows / disk, later=args.rows / median(later), cpu=cpu)
    finally:
        pixels = dl = None   # a file that is mapped keeps its blocks,
        gc.collect()
        shutil.rmtree(folder)
        os.sync()            # and the disk would free them while the next arm writes


def memory(args) -> dict:
    "Memory after the cache was written and two epochs were delivered"
    import threading

    from gz_nbdev.data import load_pixels
    source, view = source_of(args)
    before, own, stop = peak(), [], threading.Event()
    def watch():
        while not stop.wait(.02): own.append(peak()[1])
    threading.Thread(target=watch, daemon=True).start()
    folder = tempfile.mkdtemp(dir=args.cache)
    try:
        pixels = load_pixels(source, view, folder, threads=args.threads, progress=False)
        written = peak()[0]
        dl = loader(pixels, args)
        for _ in range(2): seen = sum(x.shape[0] for x, _ in dl)
        stop.set()
        return dict(rate=seen, before=before[1], own=max(own), written=written, resident=peak()[0],
                    cache=pixels.pixels.nbytes / 1e6)
    finally: shutil.rmtree(folder)


def zoobot(args) -> dict:
    "Zoobot's own data module: the view's central crop and size, no augmentation, which is the least that it can do"
    import logging
    import warnings
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    import torchvision.transforms.v2 as T
    from galaxy_datasets.pytorch.galaxy_datamodule import CatalogDataModule
    from galaxy_datasets.transforms import fast_view_config, get_galaxy_transform
    catalog = table(args.root, args.rows)
    catalog["file_loc"] = [str(args.root / name) for name in catalog["file_loc"]]
    config = fast_view_config()
    config.output_size, config.center_crop = args.size, False
    steps = get_galaxy_transform(config).transforms
    side = round(424 * args.crop)
    transform = T.Compose([T.CenterCrop(side), T.Resize((args.size, args.size), antialias=True), *steps])
    module = CatalogDataModule(label_cols=None, predict_catalog=catalog, test_transform=transform,
                               batch_size=args.batch, num_workers=2)
    module.setup("predict")
    batches = module.predict_dataloader()
    start, seen = time.perf_counter(), 0
    for batch in batches: seen += len(batch["image"])
    assert seen == args.rows and tuple(batch["image"].shape[1:]) == (3, args.size, args.size)
    first = time.perf_counter() - start
    start = time.perf_counter()   # workers persist: its later epochs are the faster ones
    for batch in batches: pass
    return dict(rate=args.rows / first, later=args.rows / (time.perf_counter() - start))


ARMS = dict(decode=decode_only, epochs=epochs, memory=memory, zoobot=zoobot)


class Arm:
    "A process that runs one arm whenever it is asked to"
    def __init__(self, arm: str, args, size: int, crop: float, rows: int):
        python = os.environ["ZOOBOT_PYTHON"] if arm == "zoobot" else sys.executable
        command = [python, __file__, "--arm", arm, "--size", size, "--crop", crop, "--rows", rows, "--root", args.root,
                   "--threads", args.threads, "--batch", args.batch, "--cache", args.cache]
        one = {**os.environ, "OMP_NUM_THREADS": "1"}   # one thread for each of ours, and each worker of zoobot's
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(list(map(str, command)), env=one, **pipes)

    def run(self) -> dict:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = next((line for line in self.process.stdout if line.startswith("{")), None)   # others are zoobot's own
        if line is None: raise SystemExit(f"{self.process.args[2:6]} ended with {self.process.wait()}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def versions() -> str:
    import PIL
    import torch
    from PIL import features
    import gz_nbdev
    from importlib.metadata import version
    return (f"gz_nbdev {gz_nbdev.__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
            f"Pillow {PIL.__version__} with libjpeg-turbo {features.version('libjpeg_turbo')}, "
            f"fastai {version('fastai')}, {os.cpu_count()} cores")


def compare(args, peer: bool):
    "Rates of every view, medians over the repeats"
    print(f"{'view':>12} {'decode only':>12} {'first epoch':>12} {'of decode':>10} {'low to high':>12} {'later':>9} "
          f"{'zoobot':>8} {'its later':>9} {'first/':>7} {'later/':>7} {'by cpu':>7} {'flushed':>8}   load")
    for size, crop in args.views:
        arms = {arm: Arm(arm, args, size, crop, args.peer_rows if arm == "zoobot" else args.rows)
                for arm in ("decode", "epochs", *["zoobot"] * peer)}
        found = {arm: [] for arm in arms}
        for _ in range(args.repeats):
            for arm in ("decode", "epochs", "decode", *["zoobot"] * peer): found[arm].append(arms[arm].run())
        for arm in arms.values(): arm.close()
        def shares(key, of, up):   # each epoch beside the decoding before and after it
            both = zip(found["epochs"], found["decode"][::2], found["decode"][1::2])
            return [(2 * e[key] / (a[of] + b[of])) ** up for e, a, b in both]
        share = shares("rate", "rate", 1)
        by_cpu, on_disk = median(shares("cpu", "cpu", -1)), median(shares("disk", "rate", 1))
        only, first, later = (median(r[key] for r in found[arm]) for arm, key in
                              (("decode", "rate"), ("epochs", "rate"), ("epochs", "later")))
        theirs = f"{'':>8} {'':>9} {'':>7} {'':>7}"
        if peer:
            his, his_later = (median(r[key] for r in found["zoobot"]) for key in ("rate", "later"))
            theirs = f"{his:8,.0f} {his_later:9,.0f} {first / his:7.1f} {later / max(his, his_later):7.1f}"
        print(f"{f'{size} px x {crop:g}':>12} {only:12,.0f} {first:12,.0f} {median(share):10.1%} "
              f"{f'{min(share):.0%} to {max(share):.0%}':>12} {later:9,.0f} "
              f"{theirs} {by_cpu:7.1%} {on_disk:8.1%}   {os.getloadavg()[0]:.1f}", flush=True)


def compare_memory(args):
    "The same files as few and as many galaxies"
    for rows in args.memory_rows:
        arm = Arm("memory", args, 128, .5, rows)
        m = arm.run()
        arm.close()
        print(f"{rows:6,} galaxies at 128 px: own memory {m['before']:.0f} MB before, {m['own']:.0f} MB at most; "
              f"resident {m['written']:.0f} MB when the cache of {m['cache']:,.0f} MB is written, "
              f"{m['resident']:,.0f} MB after two epochs, pages of the mapped file included", flush=True)


def main():
    "Print the table"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2890, help="galaxies; the files are used over and over")
    parser.add_argument("--peer-rows", type=int, default=1445, help="galaxies for zoobot, which is slower")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--root", type=Path, help="pictures of 424 px; default $GZ_DATA/decals_rings")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()), help="where caches are written")
    parser.add_argument("--memory-rows", type=int, nargs="*", default=[1000, 20000])
    parser.add_argument("--only", type=int, help="this one of the views, by its place")
    for name, kind in (("arm", str), ("size", int), ("crop", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.root is None: args.root = Path(os.environ["GZ_DATA"]) / "decals_rings"
    if args.arm:
        for _ in sys.stdin: print(json.dumps(ARMS[args.arm](args)), flush=True)
        return
    args.views = VIEWS if args.only is None else [VIEWS[args.only]]
    peer = "ZOOBOT_PYTHON" in os.environ
    print(versions(), f"\nload average {os.getloadavg()}, {args.rows:,} galaxies, batches of {args.batch}")
    if not peer: print("ZOOBOT_PYTHON is not set: no arm of zoobot")
    compare(args, peer)
    compare_memory(args)


if __name__ == "__main__": main()
