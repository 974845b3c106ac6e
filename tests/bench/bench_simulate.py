"Galaxies a second of the simulator, beside galsim drawing a comparable galaxy in the same run"
import argparse
import time

import torch

from gz_nbdev.simulate import draw_galaxies, take_pictures


def galsim_galaxy(galsim, size: int, step: float, rng):
    "Bulge and disc, Moffat seeing and noise in three bands: no features, no neighbours, no composition"
    disc = galsim.Sersic(n=1, half_light_radius=3., flux=100.).shear(q=.6, beta=30 * galsim.degrees)
    bulge = galsim.Sersic(n=3, half_light_radius=.8, flux=40.)
    for fwhm in (1.3, 1.2, 1.1):
        seen = galsim.Convolve(disc + bulge, galsim.Moffat(beta=3.5, fwhm=fwhm))
        picture = seen.drawImage(nx=size, ny=size, scale=step)
        picture.addNoise(galsim.GaussianNoise(rng, sigma=.01))


def rate(function, count: int, repeats: int) -> float:
    "Galaxies a second, the best of `repeats` runs"
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return count / best


def main():
    "Print one line for each"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    params = draw_galaxies(args.n, seed=1)
    ours = rate(lambda: take_pictures(params, args.size, device=args.device), args.n, 3)
    print(f"gz_nbdev: {ours:.0f} galaxies/s at {args.size} px, {args.device}, {torch.get_num_threads()} threads")
    try: import galsim
    except ImportError: return print("galsim is not installed: nothing to compare with")
    rng, step = galsim.BaseDeviate(1), .1 * 424 / args.size
    theirs = rate(lambda: [galsim_galaxy(galsim, args.size, step, rng) for _ in range(20)], 20, 3)
    print(f"galsim:   {theirs:.0f} galaxies/s, one process, bulge and disc only")
    print(f"ratio:    {ours / theirs:.1f}")


if __name__ == "__main__": main()
