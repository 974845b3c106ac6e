"The simulated survey, held against astropy, lenstronomy, theory, and its own promises"
import errno
import math
import os
from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from gz_nbdev import simulate, store
from gz_nbdev.schema import InputError, Schema, get_schema, schema_names
from gz_nbdev.simulate import (CAMERAS, FACE_ON, UNEVENNESS, compose_decals, deflect, draw_galaxies, draw_votes, render, sersic,
                               simulate_survey, take_pictures, vote_model)


@pytest.fixture(scope="module")
def many(): return pd.concat([draw_galaxies(6000, seed) for seed in (1, 2)], ignore_index=True)


@pytest.fixture(scope="module")
def galaxies(many): return many[:4000]


# Light

@pytest.mark.parametrize("n", [.5, 1., 2.5, 4., 6.])
def test_sersic_against_astropy(n):
    from astropy.modeling.models import Sersic2D
    r, n_, r50 = torch.logspace(-2, .9, 60).double(), torch.tensor(n).double(), torch.tensor(3.).double()
    ours = sersic(r, n_, r50, torch.tensor(50.).double(), .6)
    at_r50 = sersic(r50, n_, r50, torch.tensor(50.).double(), .6).item()
    theirs = Sersic2D(at_r50, 3., n, 0, 0)(r.numpy(), 0 * r.numpy())
    assert np.allclose(ours.numpy(), theirs, rtol=.01)


@pytest.mark.parametrize("n", [.5, 1., 2.5, 4.])
def test_sersic_flux_and_half_light(n):
    "The integral over the sky is the flux, half of it within r50, for an ellipse too"
    r = torch.logspace(-6, 4, 200_000).double()
    n_, r50 = torch.tensor(n).double(), torch.tensor(3.).double()
    light = sersic(r, n_, r50, torch.tensor(50.).double(), .6) * 2 * math.pi * r * .6
    inside = r <= 3
    assert torch.trapezoid(light, r).item() == pytest.approx(50, rel=.01)
    assert torch.trapezoid(light[inside], r[inside]).item() == pytest.approx(25, rel=.01)


def isolated(galaxies, **changes):
    "One round galaxy without features, alone in its field"
    plain = dict(kind="elliptical", magnitude=17., r50=3., bulge_r50=3., bulge_fraction=1., sersic_n=2., pixel_scale=.2,
                 axis_ratio=1., bulge_axis_ratio=1., position_angle=0., edge_on=False, arms=0, bar=False, ring=False,
                 companion=False, merger=False, arc=False, artefact=False, artefact_kind="", clumpy=False, dusty=False)
    feature = dict.fromkeys([f"{f}_brightness" for f in ("arm", "bar", "ring", "clump", "dust")], 0.)
    return galaxies.iloc[[0]].assign(**plain, **feature).assign(**changes)


@pytest.fixture
def empty_field(monkeypatch):
    monkeypatch.setattr(simulate, "_add_scenery", lambda bands, *rest: bands)


def test_rendered_flux_is_the_magnitude(galaxies, empty_field):
    "No light is lost or invented on the way from the table to the pixels: r nanomaggies = 10^(.4 (22.5 - m))"
    for size in (96, 192):
        light = render(isolated(galaxies), size, noise=False)[0, 1]
        step = .2 * 424 / size
        flux = light.sum().item() * (step / .262)**2
        assert flux == pytest.approx(10 ** (.4 * 5.5), rel=.02)


def test_disc_flux_is_the_magnitude(galaxies, empty_field):
    for edge_on, q in [(False, .7), (True, .2)]:
        disc = isolated(galaxies, kind="spiral", bulge_fraction=0., disc_n=1., disc_r50=3., axis_ratio=q, edge_on=edge_on,
                        height=.1, lopsided=0., arm_phase=0.)
        flux = render(disc, 192, noise=False)[0, 1].sum().item() * (.2 * 424 / 192 / .262)**2
        assert flux == pytest.approx(10 ** (.4 * 5.5), rel=.05 if not edge_on else .15)


def test_seeing_keeps_flux():
    light = torch.rand(3, 3, 48, 48)
    seeing = {f"seeing_{b}": torch.tensor([1., 1.2, 1.6]) for b in "grz"}
    seen = simulate._blur(light, seeing, torch.tensor([.2, .3, .4]))
    assert torch.allclose(seen.sum((2, 3)), light.sum((2, 3)), rtol=1e-5)


def test_seeing_has_the_fwhm_it_says():
    point = torch.zeros(1, 3, 128, 128)
    point[:, :, 64, 64] = 1
    seen = simulate._blur(point, {f"seeing_{b}": torch.tensor([1.2]) for b in "grz"}, torch.tensor([.1]))[0, 0]
    profile = seen[64, 64:84] / seen[64, 64]
    half = np.interp(.5, profile.flip(0).numpy(), np.arange(20)[::-1])
    assert 2 * half * .1 == pytest.approx(1.2, rel=.02)


def test_sky_noise_is_the_depth(galaxies, empty_field):
    sky = isolated(galaxies, magnitude=45., depth_factor=1., pixel_scale=.262 * 200 / 424)
    noise = render(sky, 200)[0]
    assert np.allclose(noise.std((1, 2)).numpy(), CAMERAS["decals"].sky, rtol=.03)
    fwhm, depth = CAMERAS["decals"].seeing[1], CAMERAS["decals"].depth[1]
    in_a_disc = CAMERAS["decals"].sky[1] * math.sqrt(2.266 * fwhm**2) / .262
    assert 22.5 - 2.5 * math.log10(5 * in_a_disc) == pytest.approx(depth)


def test_magnified_noise_is_smooth(galaxies, empty_field):
    "Detector pixels that are drawn large have neighbours alike"
    noise = render(isolated(galaxies, magnitude=45., pixel_scale=.1), 424)[0, 1]
    neighbours = torch.corrcoef(torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()]))[0, 1]
    assert neighbours > .5


# Lenses

def test_deflection_against_lenstronomy():
    from lenstronomy.LensModel.lens_model import LensModel
    x, y = np.random.default_rng(0).uniform(-4, 4, (2, 200))
    for q in (.6, .8, .95):
        lens = LensModel(["SIE"])
        theirs = lens.ray_shooting(x, y, [dict(theta_E=1.7, e1=(1 - q) / (1 + q), e2=0., center_x=0., center_y=0.)])
        ours = deflect(*map(torch.as_tensor, (x, y)), torch.tensor(1.7).double(), torch.tensor(q).double())
        assert np.allclose(np.stack(ours), np.stack(theirs), atol=.01)


def test_image_positions_against_lenstronomy():
    "Where lenstronomy finds the images of a source, our rays come from that source"
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver
    q, source = .7, (.12, .05)
    shape = [dict(theta_E=1.5, e1=(1 - q) / (1 + q), e2=0., center_x=0., center_y=0.)]
    x, y = LensEquationSolver(LensModel(["SIE"])).image_position_from_source(*source, shape, search_window=6)
    assert len(x) >= 2
    back = deflect(*map(torch.as_tensor, (x, y)), torch.tensor(1.5).double(), torch.tensor(q).double())
    assert np.allclose(np.stack(back), np.array(source)[:, None], atol=.01)


# Composition

def test_composition_by_hand():
    black, white = math.asinh(-.5), math.asinh(300)
    g, r, z = .02, .05, .1
    channels = np.array([(math.asinh(v) - black) / (white - black) for v in (z / .019, r / .014, g / .008)])
    mean = channels.mean()
    w = math.sin(math.pi / 2 * (1 - min(1, max(channels / mean) / 2.5)))
    by_hand = channels * w + mean * (1 - w) + mean * (1 - w)**2 * channels
    assert np.allclose(compose_decals(torch.tensor([g, r, z]).view(1, 3, 1, 1)).flatten(), by_hand, atol=1e-6)


def test_composition_ends():
    ends = torch.tensor([[-.5, 300.]]) * torch.tensor([[.008], [.014], [.019]])
    assert torch.allclose(compose_decals(ends.view(1, 3, 1, 2)), torch.tensor([0., 1.]).expand(1, 3, 1, 2), atol=1e-5)
    wild = compose_decals(100 * torch.randn(2, 3, 16, 16))
    assert wild.isfinite().all() and wild.min() >= 0 and wild.max() <= 1
    assert compose_decals(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)


# The table

def test_rates_are_the_promised(many):
    face_on = (many.kind != "elliptical") & ~many.edge_on
    open_discs = face_on & (many.axis_ratio > FACE_ON)
    assert many.ring[open_discs].mean() == pytest.approx(.10, abs=.01)
    assert not many.ring[~open_discs].any()
    assert many.ring_strength[many.ring].median() == pytest.approx(50 ** .5, rel=.15)  # log-uniform from 1 to 50
    for flag in ("merger", "arc", "artefact"): assert many[flag].mean() == pytest.approx(.01, abs=.003)
    assert .5 < face_on.mean() < .65 and .1 < many.edge_on.mean() < .17
    assert (many.bar[face_on & (many.kind == "spiral")]).mean() == pytest.approx(.66, abs=.03)
    assert many.magnitude.max() <= 17.77 and many.arms.max() == 6
    assert 2 < many.r50.median() < 4


def test_strengths_are_log_uniform(many):
    "Drawn from 1 to 50; what nature cannot make is lowered, never raised"
    from scipy.stats import kstest
    for feature in ("merger", "arc", "artefact"):
        drawn = np.log(many[f"{feature}_strength"][many[feature]]) / math.log(50)
        assert kstest(drawn, "uniform").pvalue > .001
    assert many.ring_strength.max() <= 50 and (many.ring_strength[~many.ring] == 0).all()
    assert (many.arm_strength[many.arms == 0] == 0).all()


@pytest.mark.parametrize("feature,flag", [("ring", "ring"), ("arm", "arms"), ("bar", "bar"), ("arc", "arc")])
def test_strength_is_the_measured_signal_to_noise(many, feature, flag):
    "Typical crest of the feature in pictures without noise, over the noise of a seeing disc, is the strength in the table"
    some = many[(many[flag] > 0) & (many[f"{feature}_strength"] > 3) & ~many.companion & ~many.artefact][:32]
    gone = some.assign(**{f"{feature}_brightness": 0.})
    light, under = [render(t, 128, noise=False)[:, 1].flatten(1).numpy() / .262**2 for t in (some, gone)]
    area = 2.266 * some.seeing_r.to_numpy()[:, None]**2
    sky = 10 ** (.4 * (22.5 - CAMERAS["decals"].depth[1])) / 5
    noise = np.sqrt(sky**2 + under * area / CAMERAS["decals"].gain[1] + (UNEVENNESS * under * area)**2)
    crest = np.sort((light - under) * area / noise, 1)[:, -20:].mean(1)
    assert .6 < np.median(crest / some[f"{feature}_strength"]) < 1.6


# Repeatability

def test_same_seed_same_survey():
    one, two = (simulate_survey(n=30, size=48, seed=5, progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(one.catalog, two.catalog)
    pd.testing.assert_frame_equal(one.truth, two.truth)
    assert one.images.equal(two.images)
    other = simulate_survey(n=30, size=48, seed=6, progress=False)
    assert not other.images.equal(one.images) and not set(other.catalog.id_str) & set(one.catalog.id_str)


def test_a_longer_survey_begins_with_the_shorter():
    short, long = (simulate_survey(n=n, size=32, seed=5, progress=False) for n in (20, 300))
    pd.testing.assert_frame_equal(short.truth, long.truth[:20])
    pd.testing.assert_frame_equal(short.catalog, long.catalog[:20])


def test_a_picture_does_not_depend_on_the_batch(galaxies):
    whole = take_pictures(galaxies[:40], 64)
    parts = torch.cat([take_pictures(galaxies[i:i + 8], 64) for i in range(0, 40, 8)])
    assert (whole.int() - parts.int()).abs().max() <= 1  # rounding
    assert whole.shape == (40, 3, 64, 64) and whole.dtype == torch.uint8


def test_noise_of_two_galaxies_has_nothing_in_common():
    noise = simulate._normal(torch.arange(50, dtype=torch.int32), 3, 4000)
    away = torch.corrcoef(noise) - torch.eye(50)
    assert away.abs().max() < .08 and noise.mean().abs() < .01 and abs(noise.std() - 1) < .01


# Handedness

def winding_of(picture):
    "Which way the two-armed component turns on the way out: +1 is clockwise on the screen"
    line = torch.arange(picture.shape[-1]) - (picture.shape[-1] - 1) / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    r, angle = torch.hypot(x, y), torch.atan2(y, x)
    def component(low): return (picture * torch.exp(-2j * angle) * ((r > low) & (r < low + 3))).sum()
    turns = [(component(low + 3) * component(low).conj()).angle() for low in range(10, 28, 3)]
    return -int(torch.stack(turns).sum().sign())


def test_winding_flips_in_a_mirror(many, empty_field):
    arms = many[(many.arms == 2) & (many.arm_strength > 18) & ~many.artefact & ~many.companion & ~many.ring][:8]
    arms = arms.assign(axis_ratio=1., flocculence=0., clump_brightness=0., bar_brightness=0., lopsided=0., pitch=22.)
    for winding in (1, -1):
        pictures = render(arms.assign(winding=winding), 192, noise=False)[:, 0]
        assert sum(winding_of(p) == winding for p in pictures) >= 7
        assert sum(winding_of(p.flip(-1)) == -winding for p in pictures) >= 7


# Votes

@pytest.mark.parametrize("name", schema_names() + ["dr5+rings"])
def test_every_campaign_is_answered(galaxies, name):
    schema = get_schema(name)
    expected, agreement = vote_model(galaxies[:300], schema)
    fractions, votes = draw_votes(expected, agreement, schema)
    assert expected.shape == fractions.shape == votes.shape == (300, len(schema.columns))
    assert agreement.min() >= 8 and agreement.max() <= 40
    for question in schema.questions:
        assert np.allclose(expected[:, question.slice].sum(1), 1) and np.allclose(fractions[:, question.slice].sum(1), 1)
        parents = [schema.columns.index(c) for c in question.asked_after]
        asked = votes[:, parents].sum(1) if parents else 40
        assert (votes[:, question.slice].sum(1) == asked).all()


def test_votes_are_dirichlet_multinomial(galaxies):
    schema = get_schema("dr5")
    expected, _ = vote_model(galaxies[:1], schema)
    fractions, votes = draw_votes(np.tile(expected, (40_000, 1)), np.full(40_000, 12.), schema, seed=3)
    for i in range(3):
        m = expected[0, i]
        assert fractions[:, i].mean() == pytest.approx(m, rel=.03)
        assert fractions[:, i].var() == pytest.approx(m * (1 - m) / 13, rel=.05)
        assert votes[:, i].mean() == pytest.approx(40 * m, rel=.03)
        assert votes[:, i].var() == pytest.approx(40 * m * (1 - m) * 52 / 13, rel=.05)


@pytest.mark.parametrize("feature,flag,column", [
    ("arm", "arms", "has-spiral-arms-dr5_yes"), ("ring", "ring", "ring_yes"), ("bar", "bar", "bar-dr5_no"),
    ("artefact", "artefact", "smooth-or-featured-dr5_artifact")])
def test_people_see_what_is_strong(galaxies, feature, flag, column):
    schema = get_schema("dr5+rings")
    there = galaxies[galaxies[flag] > 0]
    faint, plain = (vote_model(there.assign(**{f"{feature}_strength": s}), schema)[0][:, schema.columns.index(column)]
                    for s in (1., 50.))
    if column.endswith("_no"): faint, plain = 1 - faint, 1 - plain
    assert faint.mean() < .2 and plain.mean() > .7


def test_a_question_without_an_answer_is_refused(galaxies):
    for tree in ("colour: red, green", "bar: strong, striped"):
        with pytest.raises(InputError, match="no opinion"): vote_model(galaxies[:3], Schema.from_text(tree, name="mine"))


# Surveys

def test_tables_hold_what_they_promise():
    survey, schema = simulate_survey(n=20, size=32, schema="dr5+rings", progress=False), get_schema("dr5+rings")
    assert list(survey.catalog) == ["id_str", "ra", "dec", *schema.columns]
    assert survey.catalog.id_str.is_unique and survey.catalog.id_str.str.startswith("SIM").all()
    promised = {f"{c}_{k}" for c in schema.columns for k in ("expected", "fraction")} | {"agreement"}
    promised |= {f"{f}_strength" for f in ("arm", "bar", "ring", "merger", "arc", "artefact")}
    assert promised <= set(survey.truth) and survey.truth.id_str.equals(survey.catalog.id_str)
    for flag in ("ring", "merger", "arc", "artefact"): assert survey.truth[flag].dtype == bool
    assert survey.catalog.dec.between(-90, 90).all() and survey.catalog.ra.between(0, 360).all()


def test_on_disk(tmp_path):
    from PIL import Image
    memory = simulate_survey(n=12, size=64, seed=3, progress=False)
    survey = simulate_survey(n=12, size=64, seed=3, root=tmp_path, progress=False)
    assert survey.images is None
    catalog = pd.read_parquet(tmp_path / "catalog.parquet")
    pd.testing.assert_frame_equal(catalog.drop(columns="file_loc"), memory.catalog, check_dtype=False)
    assert len(pd.read_parquet(tmp_path / "truth.parquet")) == 12 and not list(tmp_path.rglob("*.part"))
    for name, picture in zip(catalog.file_loc, memory.images):
        stored = np.asarray(Image.open(tmp_path / name)).astype(int)
        assert np.abs(stored - picture.permute(1, 2, 0).numpy()).mean() < 6  # JPEG


def test_a_stopped_run_goes_on(tmp_path):
    whole = simulate_survey(n=6, size=48, root=tmp_path, progress=False)
    paths = [tmp_path / name for name in whole.catalog.file_loc]
    before = [p.read_bytes() for p in paths]
    paths[2].unlink()
    (tmp_path / "catalog.parquet").unlink()
    simulate_survey(n=6, size=48, root=tmp_path, progress=False)
    assert [p.read_bytes() for p in paths] == before and (tmp_path / "catalog.parquet").exists()


def test_what_a_power_cut_left_of_a_picture_is_drawn_again(tmp_path):
    whole = simulate_survey(n=6, size=48, root=tmp_path, progress=False)
    paths = [tmp_path / name for name in whole.catalog.file_loc]
    before = [p.read_bytes() for p in paths]
    for path, left in zip(paths, (b"", b"\xff", before[2][:300], bytes(len(before[3])))): path.write_bytes(left)
    (tmp_path / "catalog.parquet").unlink()
    simulate_survey(n=6, size=48, root=tmp_path, progress=False)
    assert [p.read_bytes() for p in paths] == before


def test_the_disk_has_every_picture_before_there_is_a_catalog(tmp_path, monkeypatch):
    synced, really = set(), os.fsync
    def fsync(handle):
        if not any(tmp_path.rglob("catalog.parquet")): synced.add(os.fstat(handle).st_ino)
        really(handle)
    monkeypatch.setattr(os, "fsync", fsync)
    survey = simulate_survey(n=6, size=48, root=tmp_path, progress=False)
    paths = [tmp_path / name for name in survey.catalog.file_loc]
    assert {p.stat().st_ino for p in [*paths, paths[0].parent]} <= synced


def test_a_full_disk_while_pictures_are_written(tmp_path, monkeypatch):
    save, names = Image.Image.save, []
    def full(self, file, *args, **kwargs):
        names.append(file)
        if len(names) > 2: raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, file, *args, **kwargs)
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left on device"): simulate_survey(n=6, size=48, root=tmp_path, progress=False)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["truth.parquet"]   # nothing half written
    monkeypatch.undo()
    assert all((tmp_path / name).exists() for name in simulate_survey(n=6, size=48, root=tmp_path, progress=False).catalog.file_loc)


def test_two_jobs_on_one_survey_write_under_names_of_their_own(tmp_path, monkeypatch):
    names, save = [], Image.Image.save
    def noted(self, file, *args, **kwargs):
        names.append(str(file))
        return save(self, file, *args, **kwargs)
    monkeypatch.setattr(Image.Image, "save", noted)
    for _ in range(2):
        survey = simulate_survey(n=2, size=48, root=tmp_path, progress=False)
        for name in survey.catalog.file_loc: (tmp_path / name).unlink()
    assert len(names) == len(set(names)) == 4


def test_a_survey_of_another_version_is_refused(tmp_path, monkeypatch):
    "Its simulator may draw other galaxies: their pictures would stay beside the new truth"
    simulate_survey(n=2, size=48, root=tmp_path, progress=False)
    monkeypatch.setattr(store, "__version__", "9.9")
    with pytest.raises(InputError, match="'version': '9.9'"): simulate_survey(n=2, size=48, root=tmp_path, progress=False)


def test_a_truth_that_cannot_be_read(tmp_path):
    for left in (b"", b"PAR1 cut"):
        (tmp_path / "truth.parquet").write_bytes(left)
        with pytest.raises(InputError, match="truth.parquet cannot be read"):
            simulate_survey(n=2, size=48, root=tmp_path, progress=False)


def test_a_camera_of_ones_own_goes_on(tmp_path):
    mine = replace(CAMERAS["decals"], name="mine", native=.3)
    for _ in range(2): simulate_survey(n=2, size=48, root=tmp_path, preset=mine, progress=False)
    with pytest.raises(InputError, match="another survey"):
        simulate_survey(n=2, size=48, root=tmp_path, preset=replace(mine, native=.4), progress=False)


@pytest.mark.parametrize("other", [dict(seed=1), dict(size=64), dict(schema="dr8"), dict(preset="hsc")])
def test_two_surveys_never_share_a_folder(tmp_path, other):
    simulate_survey(n=2, size=48, root=tmp_path, progress=False)
    with pytest.raises(InputError, match="another survey"):
        simulate_survey(**{"n": 2, "size": 48, "root": tmp_path, "progress": False} | other)


def test_unwritable_root(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        simulate_survey(n=2, size=48, root=tmp_path / "file", progress=False)


@pytest.mark.parametrize("wrong,says", [(dict(n=0), "at least 1"), (dict(seed=-1), "0 or more"), (dict(size=8), "32"),
                                        (dict(preset="decal"), "did you mean"), (dict(schema="dr55"), "did you mean")])
def test_wrong_arguments(wrong, says):
    with pytest.raises(InputError, match=says): simulate_survey(**{"n": 2, "progress": False} | wrong)


def test_a_question_that_is_listed_before_its_parent_is_asked():
    "Any order of the lines is the same tree; two parents of different depth too"
    lines = ["disc: yes, no", "bar: yes, no <- disc_yes", "odd: yes, no <- bar_yes or disc_no"]
    for order in permutations(lines):
        schema = Schema.from_text("\n".join(order), "mine")
        _, votes = draw_votes(np.full((300, 6), .5), np.full(300, 20.), schema)
        of = dict(zip(schema.columns, votes.T))
        assert (of["disc_yes"] + of["disc_no"] == 40).all() and of["bar_yes"].any()
        assert (of["bar_yes"] + of["bar_no"] == of["disc_yes"]).all()
        assert (of["odd_yes"] + of["odd_no"] == of["bar_yes"] + of["disc_no"]).all()


@pytest.mark.parametrize("preset", list(CAMERAS))
@pytest.mark.parametrize("size", [33, 96])
def test_every_preset_draws(preset, size):
    pictures = simulate_survey(n=12, size=size, preset=preset, progress=False).images.float()
    middle = pictures[:, :, size // 2 - 2:size // 2 + 3, size // 2 - 2:size // 2 + 3].mean((1, 2, 3))
    corner = pictures[:, :, :4, :4].mean((1, 2, 3))
    assert (middle > corner + 30).float().mean() > .8


def test_a_catalog_of_the_user_is_left_alone(tmp_path):
    (tmp_path / "catalog.parquet").write_bytes(b"mine")
    with pytest.raises(InputError, match="not simulated"): simulate_survey(n=2, size=48, root=tmp_path, progress=False)
    assert (tmp_path / "catalog.parquet").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
