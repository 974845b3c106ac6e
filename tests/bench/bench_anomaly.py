"""Galaxies a second scored by the GAN, beside the published loop: one picture at a time, its arrays stacked anew for each

    python tests/bench/bench_anomaly.py                     # the published network: 96 px, full width
    python tests/bench/bench_anomaly.py --size 64 --width .5

Both have the same weights, in torch, and read the same PNG files; arms take turns, medians are printed. Read the ratios.
They are those of a first thousand galaxies. The loop stacks the codes of all galaxies so far for every further one, so it
gets slower as it goes: the last line but one says how much slower, up to the two million galaxies that it was written for.
What can be reached at all is bounded by arithmetic: the last line holds the loop's against that of a product of matrices.
"""
import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from gz_nbdev.catalog import read_folder
from gz_nbdev.data import FolderImages, View
from gz_nbdev.gan import GalaxyGan, gan_scores, load_gan, save_gan, score_pictures
from gz_nbdev.simulate import draw_galaxies, take_pictures
from gz_nbdev.store import Store


def published(gan, files, size: int):
    "As compute_anomaly_scores.py goes about it"
    rows, latents = [], np.empty((0, gan.latent), np.float32)
    for counter, file in enumerate(files):
        picture = np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
        h, w, _ = picture.shape
        if h < size or w < size:
            lack = [max(size - side, 0) for side in (h, w)]
            picture = np.pad(picture, [*((n // 2, n - n // 2) for n in lack), (0, 0)])
        h, w, _ = picture.shape
        top, left = (h - size) // 2, (w - size) // 2
        x = torch.from_numpy(picture[top:top + size, left:left + size].transpose(2, 0, 1)[None].copy())
        with torch.no_grad():
            z = gan.encoder(x)
            drawn = gan.generator(z)
            image = ((x - drawn)**2).sum().item()
            feature = ((gan.critic.features(x) - gan.critic.features(drawn))**2).sum().item()
        latents = np.vstack([latents, z.numpy()])
        rows.append([counter, file.name, .8 * image + .2 * feature, image, feature])
    return pd.DataFrame(rows, columns=["counter", "filename", "anomaly_score", "image_score", "feature_score"]), latents


def seconds(function) -> tuple:
    "Of one call, and what it gave"
    start = time.perf_counter()
    out = function()
    return time.perf_counter() - start, out


def stacking(scored: int, latent: int) -> float:
    "Seconds by which the loop is slower for a galaxy, once so many are scored"
    latents, z = np.zeros((scored, latent), np.float32), np.ones((1, latent), np.float32)
    return statistics.median(seconds(lambda: np.vstack([latents, z]))[0] for _ in range(9))


def ceiling(gan, picture) -> tuple:
    "Arithmetic of one galaxy, GFLOP; and what a product of large matrices does in bfloat16, GFLOP a second"
    with FlopCounterMode(display=False) as counter: gan_scores(gan, picture)
    matrix = torch.randn(4096, 4096, dtype=torch.bfloat16)
    best = min(seconds(lambda: matrix @ matrix)[0] for _ in range(6))
    return counter.get_total_flops() / 1e9, 2 * len(matrix)**3 / best / 1e9


def main():
    "Print a line for each arm, and the ratios"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--width", type=float, default=1.)
    parser.add_argument("--rows", type=int, default=1024, help="pictures; the published loop sees a quarter of them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "pictures"
        root.mkdir()
        pictures = take_pictures(draw_galaxies(256, seed=1), args.size)
        for i in range(args.rows):
            Image.fromarray(pictures[i % 256].permute(1, 2, 0).numpy()).save(root / f"{i:06d}.png", compress_level=1)
        torch.manual_seed(0)
        weights = load_gan(save_gan(GalaxyGan(args.size, args.width), Path(name) / "gan", View(args.size)))
        source, view, took = FolderImages(read_folder(root), root), View(args.size, native=True), {}
        files = sorted(root.iterdir())
        few = files[:args.rows // 4]
        pixels = pictures.float() / 255
        for i in range(args.repeats + 1):
            for half in (False, True):
                out = Path(name) / f"out{i}{half}"
                arm = "gz_nbdev, " + ("bfloat16" if half else "float32")
                spent, _ = seconds(lambda: score_pictures(weights, source, out, half=half, batch_size=args.batch, view=view,
                                                              device="cpu", progress=False))
                took.setdefault(arm, []).append(spent / args.rows)
                networks = copy.deepcopy(weights.model).to(torch.bfloat16 if half else torch.float32)
                spent, _ = seconds(lambda: [gan_scores(networks, part) for part in pixels.split(args.batch)])
                took.setdefault(f"networks alone, {'bfloat16' if half else 'float32'}", []).append(spent / len(pixels))
            spent, loop = seconds(lambda: published(weights.model, few, args.size))
            took.setdefault("published loop", []).append(spent / len(few))
        base = statistics.median(took["published loop"][1:])
        print(f"{args.size} px, width {args.width:g}, {args.rows} pictures, {torch.get_num_threads()} threads, torch {torch.__version__}")
        for arm, times in took.items():
            once = statistics.median(times[1:])
            print(f"  {arm:26s} {1 / once:8.1f} galaxies/s = {base / once:6.2f} of the published loop")
        table, low = (Store(Path(name) / f"out0{half}").read(["id_str", "image_score", "feature_score"]).set_index("id_str")
                      for half in (False, True))
        theirs = loop[0].set_index(loop[0].filename.str.removesuffix(".png"))
        worst = max(abs(table.loc[theirs.index, c] / theirs[c] - 1).max() for c in ("image_score", "feature_score"))
        ranks = min(table[c].corr(low[c], method="spearman") for c in ("image_score", "feature_score"))
        print(f"  largest relative difference of a score to the loop's {worst:.1e}; rank correlation of bfloat16 with float32 {ranks:.5f}")
        best = min(statistics.median(times[1:]) for times in (took["gz_nbdev, float32"], took["gz_nbdev, bfloat16"]))
        for scored in (100_000, 1_000_000, 2_000_000):
            more = stacking(scored, weights.model.latent)   # grows with what is scored: half of it on the average
            print(f"  with {scored:9,} galaxies scored the loop needs {more * 1e3:5.1f} ms more for each; over a survey of so many, "
                  f"gz_nbdev does {(base + more / 2) / best:5.1f} times what it does")
        work, most = ceiling(weights.model, pixels[:1])
        print(f"  a galaxy is {work:.2f} GFLOP: the loop does {work / base:,.0f} GFLOP/s, so fifteen times it would be {15 * work / base:,.0f}; a "
              f"product of matrices in bfloat16 does {most:,.0f}, which would be {most * base / work:.1f} times the loop")


if __name__ == "__main__": main()
