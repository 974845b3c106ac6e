"""Wall time to the held-out loss that a plain recipe has at its best epoch

Plain: every epoch opens each JPEG file with PIL, item by item in worker processes; eager float32; one size; fastai's optimiser,
learning rate and batch. Ours: a pixel cache and `fit_for`, from the same files. Both start from the same fresh weights, turn
and mirror the galaxies in the same way, and validate on the same galaxies; the last arm alone starts from an encoder that
comes with the package. Other levers are added one at a time, in the order of the table.
"""
import argparse
import copy
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.data.core import DataLoaders, TfmdDL
from fastai.optimizer import Adam
from fasttransform import ItemTransform
from PIL import Image

from gz_nbdev.data import Augment, FolderImages, TensorVotes, View, galaxy_dls, load_pixels
from gz_nbdev.losses import DirichletMultinomialLoss
from gz_nbdev.schema import get_schema
from gz_nbdev.simulate import simulate_survey
from gz_nbdev.train import FractionError, fit_for, galaxy_learner

SCHEMA, WHOLE, KNOWS = get_schema("dr5"), "+ batches of 32, lr .005, fewer epochs", "from gz-sim-small, 2 epochs"
THEIRS = (.95, .85, .95)   # momentum, as fastai's default has it


class Files(torch.utils.data.Dataset):
    "Galaxies as most training scripts read them: one file, one picture, one vector of votes at a time"
    def __init__(self, table, root, view, split_idx):
        self.split_idx = split_idx   # fastai turns and mirrors where it is 0
        self.files, self.view = [Path(root) / name for name in table.file_loc], view
        self.votes = torch.tensor(table[list(SCHEMA.columns)].to_numpy(np.float32))

    def __len__(self): return len(self.files)

    def __getitem__(self, i):
        picture = Image.open(self.files[i]).convert("RGB")
        side = self.view.crop * picture.width
        box = ((picture.width - side) / 2,) * 2 + ((picture.width + side) / 2,) * 2
        picture = picture.resize((self.view.size,) * 2, Image.BILINEAR, box=box)
        return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy()), TensorVotes(self.votes[i], schema=SCHEMA)


class Normalise(ItemTransform):
    "Pixels of a batch as the network takes them"
    order = 99

    def __init__(self, view):
        super().__init__()
        self.view = view

    def encodes(self, batch): return (self.view.normalise(batch[0]), *batch[1:])


class Watch(Callback):
    "When each epoch ended, and how good it was"
    order = 90

    def __init__(self, began):
        super().__init__()
        self.began, self.cpu, self.rows = began, sum(os.times()[:4]), []

    def after_epoch(self):
        valid = self.recorder.log[2]
        self.rows.append((time.perf_counter() - self.began, sum(os.times()[:4]) - self.cpu, float(valid)))


def plain(start, table, root, view, epochs, seed, workers):
    "fastai's defaults on files"
    watch = Watch(time.perf_counter())
    train, valid = (Files(table[table.split == side], root, view, i) for i, side in enumerate(("train", "valid")))
    dls = DataLoaders(TfmdDL(train, bs=64, shuffle=True, drop_last=True, num_workers=workers,
                              after_batch=[Augment(), Normalise(view)]),
                      TfmdDL(valid, bs=64, num_workers=workers, after_batch=[Normalise(view)]), device="cpu")
    assert len(dls.train.after_batch.fs) == 2 and dls.train.dataset.split_idx == 0
    torch.manual_seed(seed)
    learn = Learner(dls, copy.deepcopy(start), loss_func=DirichletMultinomialLoss(SCHEMA), opt_func=Adam,
                    metrics=FractionError(SCHEMA), cbs=watch)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs)
    return watch.rows


def ours(start, table, root, view, epochs, seed, lr=1e-3, bs=64, progressive=None, opt=None, **levers):
    "The same galaxies through `galaxy_dls` and `fit_for`, the pixels decoded once"
    watch = Watch(time.perf_counter())
    with tempfile.TemporaryDirectory() as cache:
        pixels = load_pixels(FolderImages(table, root), view, Path(cache), progress=False)
        dls = galaxy_dls(table, pixels, schema=SCHEMA, bs=bs, seed=seed, device="cpu")
        learn = galaxy_learner(dls, model=copy.deepcopy(start), cbs=watch, **levers)
        if opt: learn.opt_func = opt
        with learn.no_bar(), learn.no_logging(): fit_for(learn, epochs=epochs, lr=lr, seed=seed, progressive=progressive)
    return watch.rows


def reached(rows, target):
    "Wall and processor seconds until the loss was as low as `target`, or None"
    return next(((wall, cpu) for wall, cpu, loss in rows if loss <= target), None)


def main():
    "One line a run, then a table"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--galaxies", type=int, default=2500)
    parser.add_argument("--side", type=int, default=160, help="px of the JPEG files")
    parser.add_argument("--size", type=int, default=64, help="px of the view")
    parser.add_argument("--encoder", default="resnet10t")
    parser.add_argument("--epochs", type=int, default=8, help="of the plain recipe and of each lever alone")
    parser.add_argument("--fewer", type=int, default=4, help="epochs of the whole recipe")
    parser.add_argument("--progressive", type=float, default=.75)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lever-seeds", type=int, default=1, help="seeds that also run each lever; the others: plain and whole")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the plain recipe")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # each of the first five adds one thing to the one before it
    whole = dict(precision="bf16", bs=32, lr=5e-3, epochs=args.fewer)
    arms = {"pixels decoded once": dict(precision=None, opt=Adam, moms=THEIRS),
            "+ fused optimiser": dict(precision=None, moms=THEIRS), "+ bf16": dict(precision="bf16", moms=THEIRS),
            "+ momentum from .9": dict(precision="bf16"),
            WHOLE: whole, "the same, growing": dict(whole, progressive=args.progressive),
            KNOWS: dict(precision="bf16", bs=32, lr=5e-4, epochs=2)}
    results = []
    with tempfile.TemporaryDirectory() as root:
        table = simulate_survey(args.galaxies, size=args.side, seed=5, root=root, progress=False).catalog
        table["split"] = np.where(np.arange(len(table)) % 5 == 4, "valid", "train")
        view, trained = View(args.size, .4), int((table.split == "train").sum())
        dls = galaxy_dls(table, load_pixels(FolderImages(table, root), view, progress=False), schema=SCHEMA, device="cpu")
        for seed in range(args.seeds):
            fresh, known = (galaxy_learner(dls, encoder=name, seed=seed).model for name in (args.encoder, "gz-sim-small"))
            target, base = np.inf, (np.nan, np.nan)
            for name in ["plain", *(arms if seed < args.lever_seeds else (WHOLE, KNOWS))]:
                levers = arms.get(name, {})
                common, epochs = (known if name == KNOWS else fresh, table, root, view), levers.get("epochs", args.epochs)
                if name == "plain": rows = plain(*common, epochs, seed, args.workers)
                else: rows = ours(*common, seed=seed, **{"epochs": epochs, **levers})
                best = min(loss for *_, loss in rows)
                if name == "plain": target, base = best, reached(rows, best)
                wall, cpu = reached(rows, target) or (np.nan, np.nan)
                results.append(dict(seed=seed, arm=name, epochs=epochs, best=best, images_s=epochs * trained / rows[-1][0], wall=wall,
                                    cpu=cpu, ratio=wall / base[0], cpu_ratio=cpu / base[1]))
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in results[-1].items()},
                      f"load {os.getloadavg()[0]:.1f}", flush=True)
    table = pd.DataFrame(results)
    by_arm, columns = table.groupby("arm", sort=False), ["epochs", "images_s", "best", "wall", "cpu", "ratio", "cpu_ratio"]
    print(f"\n{args.encoder}, {args.size} px, {args.threads} threads, torch {torch.__version__}; nan: never reached")
    print(by_arm[columns].mean().round(3).to_string())
    print(by_arm.ratio.agg(["min", "max", "count"]).round(3).to_string())


if __name__ == "__main__": main()
