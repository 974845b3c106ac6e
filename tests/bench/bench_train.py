"""Galaxies a second of training: one step on random tensors with each lever, and the real loop from the pixel cache

The arms take turns, the median of the rounds counts, and ratios are taken within a round, since other programs come and go.
On a CPU with one thread the processor's own seconds are used (`--clock cpu`), which a busy machine changes little.
"""
import argparse
import copy
import os
import time

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.optimizer import Adam

from gz_nbdev.data import ArrayImages, Augment, TensorVotes, View, galaxy_dls, load_pixels
from gz_nbdev.losses import DirichletMultinomialLoss
from gz_nbdev.models import GalaxyModel, create_encoder
from gz_nbdev.schema import get_schema
from gz_nbdev.train import FusedAdam, fit_for, galaxy_learner, layer_groups, machine_name

SCHEMA = get_schema("dr5")
ENCODERS = "resnet10t:64,resnet10t:128,resnet18:96,convnext_nano:64"


def stepper(start, x, y, opt_func, dtype, compiled=False):
    "One training step on the same random tensors, again and again"
    model = copy.deepcopy(start).train()
    if compiled: model.encoder.forward = torch.compile(model.encoder.forward, dynamic=False)
    opt, loss = opt_func(layer_groups(model), lr=1e-4), DirichletMultinomialLoss(SCHEMA).to(x.device)

    def step():
        with torch.autocast(x.device.type, dtype or torch.bfloat16, enabled=dtype is not None): output = model(x)
        loss(output.float(), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 50.)
        opt.step()
        opt.zero_grad()
    return step


class Timed(Callback):
    "Seconds of the training batches of an epoch, without the first three"
    order = 95

    def __init__(self, clock):
        super().__init__()
        self.clock, self.rates = clock, []

    def after_batch(self):
        if self.training and self.iter == 2: self.began = self.clock()

    def after_train(self):
        if self.dls.device.type == "cuda": torch.cuda.synchronize()
        self.rates.append((self.n_iter - 3) * self.dls.train.bs / (self.clock() - self.began))


def real_loop(start, images, size, bs, device, precision, clock):
    "Galaxies a second of an epoch of `fit_for` from cached pixels: order, turns, record, gradient clipping and all"
    n = len(images)
    table = pd.DataFrame({"id_str": [f"g{i}" for i in range(n)], "split": ["train"] * (n - bs) + ["valid"] * bs})
    table[list(SCHEMA.columns)] = np.random.default_rng(0).integers(0, 10, (n, len(SCHEMA.columns)))
    pixels = load_pixels(ArrayImages(table.id_str, images), View(size), progress=False)
    dls, timed = galaxy_dls(table, pixels, schema=SCHEMA, bs=bs, device=device), Timed(clock)
    learn = galaxy_learner(dls, model=copy.deepcopy(start), precision=precision, cbs=timed)
    with learn.no_bar(), learn.no_logging(): fit_for(learn, epochs=1)
    return timed.rates[0]


def main():
    "A table for each encoder"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", default=ENCODERS, help="name:size, separated by commas")
    parser.add_argument("--bs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--compile", action="store_true", help="the compiled encoder too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, clock = torch.device(args.device), time.perf_counter if args.clock == "wall" else time.process_time
    print(f"{machine_name(device)}, torch {torch.__version__}, bs {args.bs}, {args.clock} clock, load {os.getloadavg()[0]:.1f}")
    for name, size in (text.split(":") for text in args.encoders.split(",")):
        torch.manual_seed(0)
        size, start = int(size), GalaxyModel(create_encoder(name), len(SCHEMA.columns))
        start = start.to(device=device, memory_format=torch.channels_last)
        x = torch.randn(args.bs, 3, size, size, device=device)
        y = TensorVotes(torch.randint(0, 10, (args.bs, len(SCHEMA.columns)), device=device).float(), schema=SCHEMA)
        small = torch.nn.functional.interpolate(x, size=16 * round(.75 * size / 16))
        arms = {"float32, fastai's Adam": stepper(start, x, y, Adam, None), "float32, fused": stepper(start, x, y, FusedAdam, None),
                "bf16, fused": stepper(start, x, y, FusedAdam, torch.bfloat16),
                f"bf16, fused, {small.shape[-1]} px": stepper(start, small, y, FusedAdam, torch.bfloat16)}
        if args.compile: arms["bf16, fused, compiled"] = stepper(start, x, y, FusedAdam, torch.bfloat16, True)
        pictures, augment = torch.randint(0, 255, (args.bs * (args.steps + 4), 3, size, size), dtype=torch.uint8), Augment()
        raw = pictures[:args.bs].to(device)
        arms["turning alone"] = lambda: augment.encodes((raw, y))
        rows = {arm: [] for arm in [*arms, "real loop, float32", "real loop, bf16"]}
        for step in arms.values(): step(), step()
        for _ in range(args.rounds):
            for arm, step in arms.items():
                began = clock()
                for _ in range(args.steps): step()
                if device.type == "cuda": torch.cuda.synchronize()
                rows[arm].append(args.bs * args.steps / (clock() - began))
            for precision in (None, "bf16"):
                rows[f"real loop, {precision or 'float32'}"].append(real_loop(start, pictures, size, args.bs, device, precision, clock))
        base = np.array(rows["float32, fastai's Adam"])
        told = {arm: dict(galaxies_s=np.median(rates), ratio=np.median(np.array(rates) / base)) for arm, rates in rows.items()}
        for precision in ("float32", "bf16"):
            share = np.median(np.array(rows[f"real loop, {precision}"]) / rows[f"{precision}, fused"])
            told[f"real loop, {precision}"]["of_random_tensors"] = share
        print(f"\n{name}, {size} px\n{pd.DataFrame(told).T.round(2).to_string(na_rep='')}", flush=True)


if __name__ == "__main__": main()
