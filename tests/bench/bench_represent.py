"""Galaxies a second from JPEG files to a table of representations, beside zoobot's predict_on_catalog in the same run

    python tests/bench/bench_represent.py speed resnet18 128     # against zoobot, and against what the machine allows
    python tests/bench/bench_represent.py choice resnet18 128    # the automatic plan against fixed ones
    python tests/bench/bench_represent.py memory 10000 200000    # peak memory

Rates depend on the machine and on what else it does: read the ratios. Arms take turns, medians are printed. Processor
seconds stand beside the time on the clock, as other jobs lengthen only the latter. The python that has zoobot is named
by ZOOBOT_PYTHON; pictures come from GZ_DATA/decals_rings, or are simulated where that is not set. Weights are random,
and the same for both.
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import pandas as pd
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from gz_nbdev.data import FolderImages, View, iter_batches, load_pixels
from gz_nbdev.represent import Plan, _cosine, _joined, _Network, _side_by_side, _workers, open_encoder, represent
from gz_nbdev.simulate import simulate_survey

ZOOBOT = """
import resource, sys, time, logging, warnings
warnings.filterwarnings("ignore")
import pandas as pd, timm, torch
from lightning import LightningModule
from safetensors.torch import load_file
from torchvision.transforms import v2
from zoobot.pytorch.predictions import predict_on_catalog
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
catalog, state, name, size, batch, out = sys.argv[1:]

class Encoder(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = timm.create_model(name, num_classes=0).eval()
        self.encoder.load_state_dict(load_file(state))
    def predict_step(self, x, batch_idx): return self.encoder(x["image"])

transform = v2.Compose([v2.PILToTensor(), v2.Resize((int(size), int(size)), antialias=True),
                        v2.ToDtype(torch.float32, scale=True), v2.Normalize([.1] * 3, [.1] * 3)])
model = Encoder()
table = pd.read_csv(catalog, dtype=str)
began = time.perf_counter()
predict_on_catalog.predict(table, model, out, [f"feat_{i}" for i in range(model.encoder.num_features)], transform,
    datamodule_kwargs=dict(batch_size=int(batch), num_workers=2),
    trainer_kwargs=dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False))
print("SECONDS", time.perf_counter() - began)
"""


def pictures(folder: Path) -> list:
    "JPEG files of 424 px"
    if os.environ.get("GZ_DATA"):
        return sorted((Path(os.environ["GZ_DATA"]) / "decals_rings" / "images").rglob("*.jp*g"))
    images = simulate_survey(100, size=424, progress=False).images
    for i, image in enumerate(images): Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.jpg")
    return sorted(folder.glob("*.jpg"))


def catalog_of(files: list, rows: int) -> tuple:
    "A catalog in which the same files come again under other ids, and the folder that holds them"
    table = pd.DataFrame({"id_str": [f"G{i:07d}" for i in range(rows)],
                          "file_loc": [str(f) for f in islice(cycle(files), rows)]})
    return table, os.path.commonpath([f.parent for f in files])


def used() -> float:
    "Processor seconds of this process"
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime


def timed(function) -> tuple:
    "Seconds on the clock, and of the processors; what came out"
    clock, processor = time.perf_counter(), used()
    out = function()
    return time.perf_counter() - clock, used() - processor, out


def zoobot(args, catalog: Path, state: Path, folder: Path) -> tuple:
    "The same for zoobot, in its own environment; loading it is not counted, but for the processor"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = subprocess.run([os.environ["ZOOBOT_PYTHON"], "-c", ZOOBOT, str(catalog), str(state), args.encoder,
                           str(args.size), str(args.batch), str(folder / "zoobot.csv")], capture_output=True, text=True)
    if told.returncode: sys.exit(told.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(told.stdout.rpartition("SECONDS")[2]), spent, folder / "zoobot.csv"


def network_only(encoder, plan, pixels, turns=1):
    "What `represent` does after decoding, but for writing"
    batches = _joined(((list(range(len(part))), part) for part in pixels.split(8)), plan.batch)
    with _workers(torch.device("cpu")) as workers:
        for _ in _side_by_side(_Network(encoder, plan, torch.device("cpu"), turns), batches, workers): pass


def decode_only(source, view):
    "Reading and decoding alone, by as many threads"
    with _workers(torch.device("cpu")):
        for _ in iter_batches(source, view, 8): pass


def speed(args, folder: Path):
    "Ours, zoobot's, and the limit of 1 / (1 / encoder alone + 1 / decoding alone)"
    torch.manual_seed(0)
    module, view = timm.create_model(args.encoder, num_classes=0).eval(), View(args.size)
    save_file(module.state_dict(), folder / "state.safetensors")
    table, root = catalog_of(pictures(folder), args.rows)
    table.to_csv(folder / "catalog.csv", index=False)
    source, encoder, arms = FolderImages(table, root), open_encoder(module, view), {}
    warm = represent(module, FolderImages(table[:100], root), folder / "warm", turns=1, device="cpu", view=view,
                     progress=False)
    plan = Plan(**json.loads((warm.root / "plan.json").read_text())["plan"])
    few = load_pixels(FolderImages(table[:256], root), view, progress=False).pixels
    pixels = few.repeat(-(-args.rows // len(few)), 1, 1, 1)[:args.rows]
    def ours(i): return represent(module, source, folder / f"ours{i}", turns=1, device="cpu", view=view, progress=False)
    for i in range(args.repeats):
        arms.setdefault("represent", []).append(timed(lambda: ours(i)))
        arms.setdefault("encoder alone", []).append(timed(lambda: network_only(encoder, plan, pixels)))
        arms.setdefault("decoding alone", []).append(timed(lambda: decode_only(source, view)))
        if os.environ.get("ZOOBOT_PYTHON"):
            arms.setdefault("zoobot", []).append(zoobot(args, folder / "catalog.csv", folder / "state.safetensors", folder))
        print(f"  repeat {i}: " + ", ".join(f"{arm} {runs[-1][0]:.1f} s ({runs[-1][1]:.1f} of processors)"
                                            for arm, runs in arms.items()), flush=True)
    said = (folder / "ours0" / "plan.json").read_text()
    print(f"{args.encoder} at {args.size} px, {args.rows:,} galaxies, {said}, {torch.get_num_threads()} threads, "
          f"load {os.getloadavg()[0]:.1f}")
    clock = {arm: statistics.median(t for t, *_ in runs) for arm, runs in arms.items()}
    spent = {arm: statistics.median(t for _, t, _ in runs) for arm, runs in arms.items()}
    for arm in arms: print(f"  {arm:16s} {args.rows / clock[arm]:8.1f} galaxies/s  {spent[arm]:8.1f} processor s")
    limit, least = (t["encoder alone"] + t["decoding alone"] for t in (clock, spent))
    print(f"  represent reaches {limit / clock['represent']:.2f} of the limit of encoder and decoding "
          f"(by processor seconds {least / spent['represent']:.2f})")
    if "zoobot" not in arms: return print("  zoobot: skipped, ZOOBOT_PYTHON names no python")
    print(f"  represent is {clock['zoobot'] / clock['represent']:.2f} times as fast as zoobot (each repeat: "
          + ", ".join(f"{z[0] / o[0]:.2f}" for z, o in zip(arms["zoobot"], arms["represent"]))
          + f"; by processor seconds, zoobot's start included, {spent['zoobot'] / spent['represent']:.2f})")
    theirs = pd.read_csv(folder / "zoobot.csv", dtype={"id_str": str}).set_index("id_str")
    ids, mine = arms["represent"][0][2].read_features()
    exact = represent(module, source, folder / "exact", turns=1, device="cpu", view=view, progress=False, plan=Plan())
    same = _cosine(exact.read_features()[1], mine).min()
    print(f"  cosine to our float32, the lowest: {same:.5f}; to zoobot, whose decoding differs, the lowest: "
          f"{_cosine(theirs.loc[ids].to_numpy(), mine).min():.4f}")


def choice(args, folder: Path):
    "The automatic plan, its trial included, against every fixed one"
    torch.manual_seed(0)
    module, view = timm.create_model(args.encoder, num_classes=0).eval(), View(args.size)
    fixed = [Plan(p, b) for p in ("float32", "bf16") for b in (8, 32, 128)]
    if args.compile: fixed += [Plan("float32", 32, True), Plan("bf16", 32, True)]
    for rows in args.counts:
        table, root = catalog_of(pictures(folder), rows)
        source, times = FolderImages(table, root), {}
        for i in range(args.repeats * (3 if rows < 1000 else 1)):   # half a second each: more of them
            for plan in [None, *fixed, "known"]:
                out = folder / f"{rows}-{i}-{fixed.index(plan) if plan in fixed else plan}"
                if plan is None: shutil.rmtree(folder / "gz_nbdev", ignore_errors=True)   # the notes: as if for the first time
                torch._dynamo.reset()
                took, spent, _ = timed(lambda: represent(module, source, out, turns=1, device="cpu", view=view,
                                       progress=False, plan=plan if isinstance(plan, Plan) else None))
                times.setdefault(plan, []).append((took, spent))
                shutil.rmtree(out)
        for number, what in enumerate(("clock", "processor seconds")):
            middle = {plan: statistics.median(t[number] for t in took) for plan, took in times.items()}
            best = min(fixed, key=middle.get)
            print(f"{args.encoder} at {args.size} px, {rows:,} galaxies, {what}: chosen at first {middle[None]:.2f} s = "
                  f"{middle[None] / middle[best]:.2f} of the best fixed ({best}), with notes "
                  f"{middle['known'] / middle[best]:.2f}; " + ", ".join(
                      f"{p.precision}-{p.batch}{'-compiled' * p.compiled} {middle[p]:.2f}" for p in fixed), flush=True)
        fixed = [p for p in fixed if p.compiled or middle[p] < 2 * middle[best]]   # the others will not be the best of more


MEMORY = """
import sys, torch, pandas as pd
from gz_nbdev.data import FolderImages, View
from gz_nbdev.represent import represent
rows, root, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
class Tiny(torch.nn.Module):
    num_features = 12
    def forward(self, x): return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
table = pd.DataFrame(dict(id_str=[f"G{i:08d}" for i in range(rows)], file_loc=[f"{i % 50}.jpg" for i in range(rows)]))
source = FolderImages(table, root)
del table
def peak(): return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
store = represent(Tiny(), source, out, turns=1, view=View(32), device="cpu", progress=False)
print(before, peak(), store.summary)
"""


def memory(args, folder: Path):
    "Peak memory by rows of the catalog, which share fifty small pictures"
    for i, image in enumerate(simulate_survey(50, size=40, progress=False).images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.jpg")
    peaks = []
    for rows in args.counts:
        began = time.perf_counter()
        told = subprocess.run([sys.executable, "-c", MEMORY, str(rows), str(folder), str(folder / f"out{rows}")],
                              capture_output=True, text=True)
        if told.returncode: sys.exit(told.stderr[-2000:])
        before, peak, summary = told.stdout.strip().split(" ", 2)
        peaks.append(float(peak))
        print(f"{rows:10,} rows: peak {peaks[-1]:,.0f} MB (before the job, catalog read: {float(before):,.0f}) = "
              f"{peaks[-1] / peaks[0]:.2f} of the first; {summary}; {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    for task in ("speed", "choice"):
        one = tasks.add_parser(task)
        one.add_argument("encoder", nargs="?", default="resnet18")
        one.add_argument("size", nargs="?", type=int, default=128)
        one.add_argument("--repeats", type=int, default=3)
        one.add_argument("--rows", type=int, default=1500)
        one.add_argument("--batch", type=int, default=128, help="zoobot's")
        one.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10000])
        one.add_argument("--compile", action="store_true")
    tasks.add_parser("memory").add_argument("counts", type=int, nargs="+")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = name
        {"speed": speed, "choice": choice, "memory": memory}[args.task](args, Path(name))
