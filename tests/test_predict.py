"Predictions under faults, against SciPy and simulation (F1, F17: the faults)"

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import beta, betabinom

from gz_nbdev.data import ArrayImages, View, load_pixels
from gz_nbdev.metrics import draw_counts
from gz_nbdev.models import GalaxyModel, Weights, create_encoder, load_weights, save_weights
from gz_nbdev.predict import (
    Posterior,
    calibrate,
    fit_temperature,
    mixture_quantile,
    over_galaxies,
    posterior_table,
    predict,
    published_catalog,
)
from gz_nbdev.schema import InputError, Schema, get_schema
from gz_nbdev.store import Store

DR5, RINGS = get_schema("dr5"), get_schema("rings")
RUN = dict(turns=2, passes=3, batch_size=8, concentrations=True, device="cpu", progress=False)


class Tiny(torch.nn.Module):
    "Colours, edges and gradients as features; NaN for an all-white picture"
    num_features = 24

    def forward(self, x):
        features = torch.cat([x.mean((2, 3)), x.std((2, 3)), x[..., :4, :].mean((2, 3)), x[..., :4].mean((2, 3))], 1)
        features = torch.cat([features, features**2 / 10], 1)
        return torch.where(x.mean((1, 2, 3))[:, None] > 8.9, torch.nan, features)


def tiny_weights(seed=0, schema=DR5, view=None, dropout=0.3, temperature=None, name="tiny") -> Weights:
    "A network that costs nothing"
    torch.manual_seed(seed)
    model = GalaxyModel(Tiny(), len(schema.columns), dropout).eval()
    digest = hashlib.sha256(str(seed).encode()).hexdigest()
    sha256 = {"model.safetensors": "0" * 64, "head.safetensors": digest}
    return Weights(model, view or View(16), schema, dict(name=name, sha256=sha256, temperature=temperature))


class Galaxies(ArrayImages):
    "Pictures one of which is broken"

    def read(self, i):
        return b"" if i == 11 else super().read(i)


def galaxies(n=60) -> ArrayImages:
    "Noise of many brightnesses; number 11 cannot be read, number 21 makes the network fail"
    rng = np.random.default_rng(3)
    images = (rng.random((n, 3, 1, 1)) * rng.random((n, 3, 16, 16)) * 255).astype(np.uint8)
    if n > 21:
        images[21] = 255
    return Galaxies([f"J{i:03d}" for i in range(n)], torch.from_numpy(images))


def some_posterior(n=5, members=3, schema=DR5, seed=0, spread=1.5) -> Posterior:
    rng = np.random.default_rng(seed)
    a = np.exp(rng.normal(1, spread, (members, n, len(schema.columns))))
    return Posterior(a, schema, [f"G{i}" for i in range(n)])


# Numbers


@pytest.mark.parametrize("scale,spread", [(1, 0.2), (3, 2.0), (-4, 1.0), (6, 0.01)])
def test_quantiles_are_where_the_distribution_function_says(scale, spread):
    rng = np.random.default_rng(0)
    a = np.exp(rng.normal(scale, 1.5, (1, 200, 3)) + rng.normal(0, spread, (4, 200, 3))) + 1e-3
    total = a.sum(-1, keepdims=True)
    for p in (0.05, 0.5, 0.95):
        x = mixture_quantile(a, p)
        below = np.mean([beta(k, t - k).cdf(x - 1e-5) for k, t in zip(a, total)], 0)
        above = np.mean([beta(k, t - k).cdf(x + 1e-5) for k, t in zip(a, total)], 0)
        assert ((below <= p + 1e-6) | (x < 1e-5)).all() and ((above >= p - 1e-6) | (x > 1 - 1e-5)).all()


def test_one_member_is_a_beta_distribution():
    a = some_posterior(20, 1, RINGS)
    lower, upper = a.interval(0.8)
    exact = beta(*np.moveaxis(a.concentrations[0], -1, 0)).ppf([[0.1], [0.9]])
    np.testing.assert_allclose(np.stack([lower[:, 0], upper[:, 0]]), exact, atol=2e-8)


def test_quantiles_do_not_depend_on_threads_or_company():
    a, threads = some_posterior(7).concentrations, torch.get_num_threads()
    try:
        found = []
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(mixture_quantile(a, [0.05, 0.95]))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
    np.testing.assert_allclose(mixture_quantile(a[:, 4:5], 0.05), found[0][0, 4:5], rtol=1e-12)


def test_entropy_and_information_by_simulation():
    posterior = some_posterior(3, 4)
    p = np.clip(posterior.sample(40_000, seed=1), 1e-300, 1)
    for i, q in enumerate(DR5.questions):
        part = p[..., q.slice]
        mean = part.mean(0)
        entropy = -(mean * np.log(mean)).sum(-1)
        remains = -(part * np.log(part)).sum(-1).mean(0)
        np.testing.assert_allclose(posterior.entropy()[:, i], entropy, atol=0.01)
        np.testing.assert_allclose(posterior.mutual_information()[:, i], entropy - remains, atol=0.012)


def test_information_is_what_one_vote_teaches():
    "The same from the other side: how much the expected vote changes what is believed, by Bayes' theorem on a grid"
    x = (np.arange(20_000) + 0.5) / 20_000
    density = np.mean([beta(6, 2).pdf(x), beta(30, 30).pdf(x)], 0) / len(x)
    gain = 0
    for likelihood in (x, 1 - x):
        chance = (density * likelihood).sum()
        after = density * likelihood / chance
        gain += chance * (after * np.log(after / density)).sum()
    posterior = Posterior([[[6, 2]], [[30, 30]]], RINGS)
    assert posterior.mutual_information()[0, 0] == pytest.approx(gain, abs=1e-5)


def test_information_is_never_negative_and_vanishes_with_certainty():
    a = some_posterior(50).concentrations
    assert (Posterior(a, DR5).mutual_information() >= 0).all()
    assert Posterior(a[:1] * 1e9, DR5).mutual_information().max() < 1e-6
    assert (Posterior(a, DR5).mutual_information() <= Posterior(a, DR5).entropy()).all()


PATH = ["disk-edge-on-dr5_no", "bar-dr5_strong", "bar-dr5_weak", "has-spiral-arms-dr5_yes",
        "spiral-arm-count-dr5_2", "spiral-winding-dr5_loose"]


def test_a_path_is_the_product_within_each_member():
    posterior = some_posterior(4, 3, spread=0.7)
    f = pd.DataFrame((posterior.concentrations / posterior._totals).reshape(-1, 34), columns=DR5.columns)
    product = f["smooth-or-featured-dr5_featured-or-disk"] * f["disk-edge-on-dr5_no"]
    product *= f["bar-dr5_strong"] + f["bar-dr5_weak"]
    product *= f["has-spiral-arms-dr5_yes"] * f["spiral-arm-count-dr5_2"] * f["spiral-winding-dr5_loose"]
    found = posterior.joint(PATH, n=4000)
    np.testing.assert_allclose(found.probability, product.to_numpy().reshape(3, 4).mean(0))
    drawn = DR5.joint_probability(posterior.sample(4000), PATH)
    np.testing.assert_allclose(drawn.mean(0), found.probability, rtol=0.12)
    np.testing.assert_allclose(np.quantile(drawn, 0.95, axis=0), found.upper90, rtol=1e-9)
    assert list(found.columns) == ["id_str", "probability", "lower90", "upper90"]
    assert found.id_str.tolist() == posterior.ids
    assert (found.lower90 <= found.probability).all() and (found.probability <= found.upper90).all()


def test_draws_belong_to_the_galaxy():
    posterior = some_posterior(6)
    alone = Posterior(posterior.concentrations[:, 3:4], DR5, posterior.ids[3:4])
    assert (posterior.sample(5, seed=2)[:, 3] == alone.sample(5, seed=2)[:, 0]).all()
    assert (posterior.sample(5, seed=2) != posterior.sample(5, seed=3)).any()
    pd.testing.assert_frame_equal(posterior.joint(PATH).iloc[[3]].reset_index(drop=True), alone.joint(PATH))


def test_draws_hold_for_tiny_concentrations():
    p = Posterior(np.full((1, 2, 34), 1e-3), DR5).sample(200)
    assert np.isfinite(p).all()
    np.testing.assert_allclose(np.stack([p[..., g].sum(-1) for g in DR5.index_groups]), 1)


@pytest.mark.parametrize("n", [0, 1, 8, 40, 400])
def test_counts_are_those_of_beta_binomials(n):
    posterior = some_posterior(6, 3, RINGS)
    lower, upper = posterior.count_interval(np.full((6, 1), n), 0.9)
    for i in range(6):
        for j in range(2):
            a = posterior.concentrations[:, i]
            cdf = np.mean([betabinom(n, m[j], m.sum() - m[j]).cdf(np.arange(n + 1)) for m in a], 0)
            assert lower[i, j] == (cdf < 0.05 - 1e-12).sum() and upper[i, j] == (cdf < 0.95 - 1e-12).sum()
    np.testing.assert_allclose(posterior.expected_votes(np.full((6, 1), n)).sum(-1), n)


def test_counts_of_a_table_of_totals():
    posterior, totals = some_posterior(2), pd.DataFrame(7, range(2), [f"{q.name}_total-votes" for q in DR5.questions])
    np.testing.assert_allclose(posterior.expected_votes(totals), 7 * posterior.fractions)
    for bad in (totals - 8, totals + 0.5, totals * np.nan):
        with pytest.raises(InputError, match="whole numbers of volunteers"):
            posterior.count_interval(bad)


def test_the_table_has_every_column_once_and_agrees_with_the_methods():
    posterior = some_posterior()
    table = posterior.table()
    assert table.columns.is_unique and len(table.columns) == 1 + 3 * 34 + 3 * 10
    np.testing.assert_allclose(table[[f"{c}_fraction" for c in DR5.columns]], posterior.fractions, rtol=1e-6)
    upper = table[[f"{c}_fraction_upper90" for c in DR5.columns]]
    np.testing.assert_allclose(upper, posterior.interval()[1], rtol=1e-6)
    for what, values in [
        ("proportion_volunteers_asked", posterior.proportion_asked()),
        ("entropy", posterior.entropy()),
        ("mutual_information", posterior.mutual_information()),
    ]:
        np.testing.assert_allclose(table[[f"{q.name}_{what}" for q in DR5.questions]], values, rtol=1e-5, atol=1e-7)
    assert len(posterior_table(np.empty((2, 0, 34)), DR5)) == 0


def test_a_posterior_says_what_it_cannot_use():
    a = some_posterior().concentrations
    for bad in (np.nan, np.inf, 0, -1):
        wrong = a.copy()
        wrong[1, 2, 3] = bad
        with pytest.raises(InputError, match="finite and above 0.*galaxy 2, disk-edge-on-dr5_yes"):
            Posterior(wrong, DR5)
    with pytest.raises(InputError, match="2 ids for 5 galaxies"):
        Posterior(a, DR5, ["a", "b"])
    with pytest.raises(InputError, match="expected .members, 5, 2."):
        Posterior(a, RINGS)
    with pytest.raises(InputError, match="between 0 and 1"):
        Posterior(a, DR5).interval(90)


# Temperature


def test_temperature_finds_the_factor_and_leaves_what_is_right():
    rng = np.random.default_rng(0)
    true = np.exp(rng.normal(1, 0.5, (600, 34)))
    a = true[None] * np.repeat([4, 1, 0.25, 1, 1, 1, 1, 1, 1, 1], [len(q.answers) for q in DR5.questions])
    votes = draw_counts(true[None], np.full((600, 10), 15), DR5, seed=1)
    votes[29:, DR5.question("merging-dr5").slice] = 0
    a[..., DR5.question("merging-dr5").slice] *= 50
    t = fit_temperature(a, votes, DR5)
    assert t[0] == pytest.approx(0.25, rel=0.15) and t[2] == pytest.approx(4, rel=0.4)
    assert t[9] == 1   # 29 galaxies are too few
    assert (t[[1, 3, 4, 5, 6, 7, 8]] == 1).sum() >= 5   # one in twenty may move by chance
    np.testing.assert_array_equal(t, fit_temperature(a, pd.DataFrame(votes, columns=DR5.columns), DR5))


def test_temperature_is_applied_kept_and_refused(tmp_path):
    source, t = galaxies(12), [0.5] + [1.0] * 9
    cool = tiny_weights(temperature=t)
    plain = Posterior.from_store(predict(tiny_weights(), source, tmp_path / "plain", **RUN))
    cooled = Posterior.from_store(predict(cool, source, tmp_path / "cool", **RUN))
    np.testing.assert_allclose(cooled.concentrations[..., :3], plain.concentrations[..., :3] / 2, rtol=1e-6)
    np.testing.assert_allclose(cooled.concentrations[..., 3:], plain.concentrations[..., 3:])
    np.testing.assert_allclose(cooled.fractions, plain.fractions, rtol=1e-5)
    with pytest.raises(InputError, match="temperature was"):
        predict(cool, source, tmp_path / "plain", **RUN)


def test_temperature_survives_on_disk_and_a_bad_one_is_named(tmp_path):
    model = GalaxyModel(create_encoder("resnet10t"), 2)
    folder = save_weights(model, tmp_path / "w", View(32), RINGS, temperature=[0.3])
    assert load_weights(folder).temperature == [0.3]
    note = (folder / "gz.json").read_text()
    (folder / "gz.json").write_text(note.replace("0.3", "-0.3"))
    with pytest.raises(InputError, match="gz.json: the temperature of ring is -0.3"):
        load_weights(folder)
    wrong = [([1, 2], "2 temperatures"), ("warm", "not a list"), ([0], "above 0"), ([float("inf")], "is inf")]
    for bad, message in wrong:
        with pytest.raises(InputError, match=message):
            save_weights(model, tmp_path / "x", View(32), RINGS, temperature=bad)
    assert not (tmp_path / "x").exists()


def test_calibrate_uses_the_catalog_alone(tmp_path):
    source, weights = galaxies(60), tiny_weights(schema=RINGS, temperature=[7.0])
    rng = np.random.default_rng(0)
    yes = rng.binomial(20, rng.beta(0.5, 0.5, 60))
    catalog = pd.DataFrame({"id_str": source.ids, "ring_yes": yes, "ring_no": 20 - yes})
    calibrated = calibrate(weights, catalog[::-1], source, turns=1)   # matched by id, not by place
    assert calibrated.temperature != [7.0] and weights.temperature == [7.0]
    same = calibrate(replace(weights, info=weights.info | dict(temperature=None)), catalog, source, turns=1)
    np.testing.assert_allclose(same.temperature, calibrated.temperature)
    assert calibrate(weights, catalog[:20], source, turns=1).temperature == [1.0]
    with pytest.raises(InputError, match="do the ids of catalog and source agree"):
        calibrate(weights, catalog.assign(id_str=catalog.id_str + "x"), source)
    with pytest.raises(InputError, match="lacks 1 of the 2 columns"):
        calibrate(weights, catalog.drop(columns="ring_no"), source)


# Jobs


def test_batches_order_and_company_do_not_matter(tmp_path):
    source = galaxies()
    table = predict(tiny_weights(), source, tmp_path / "a", **RUN).read().set_index("id_str")
    shuffled = ArrayImages(source.ids[::-1], source.images.flip(0))
    for i, batch_size in enumerate((5, 60)):
        other = predict(tiny_weights(), shuffled, tmp_path / str(i), **RUN | dict(batch_size=batch_size)).read()
        other = other.set_index("id_str").loc[table.index]
        a, b = (np.stack(t.concentrations) for t in (table, other))
        np.testing.assert_allclose(a, b, rtol=1e-4)
        names = [c for c in table if c != "concentrations"]
        np.testing.assert_allclose(table[names], other[names], rtol=1e-4, atol=1e-6)


def test_more_passes_begin_with_the_same(tmp_path):
    source = galaxies(8)

    def members(passes):
        store = predict(tiny_weights(), source, tmp_path / str(passes), **RUN | dict(turns=1, passes=passes))
        return Posterior.from_store(store).concentrations

    three, five = members(3), members(5)
    np.testing.assert_allclose(three, five[:3])
    assert (np.ptp(five, axis=0) > 0).any()
    raw = [np.log(np.expm1(np.maximum(members(n) - 1e-3, 1e-6))).mean(0) for n in (1, 300)]
    sure = raw[0] > -2   # mean of the dropout passes is the pass without, before softplus
    np.testing.assert_allclose(raw[1][sure], raw[0][sure], atol=0.35)


def test_an_ensemble_is_the_mixture_of_its_networks(tmp_path):
    source, networks = galaxies(8), [tiny_weights(0), tiny_weights(1, temperature=[2.0] * 10)]
    options = RUN | dict(passes=1)
    both = Posterior.from_store(predict(networks, source, tmp_path / "both", **options))
    single = [Posterior.from_store(predict(w, source, tmp_path / str(i), **options)) for i, w in enumerate(networks)]
    np.testing.assert_allclose(both.concentrations, np.concatenate([p.concentrations for p in single]))
    np.testing.assert_allclose(both.fractions, np.mean([p.fractions for p in single], 0))


def test_f17_nan_is_quarantined_and_counted(tmp_path):
    store = predict(tiny_weights(), galaxies(), tmp_path / "s", **RUN)
    assert store.summary == "58 written + 2 quarantined = 60 galaxies, each once"
    reasons = store.failures().set_index("id_str").reason
    assert reasons["J011"] == "empty file (0 bytes)" and "not finite" in reasons["J021"]
    assert np.isfinite(store.read(["bar-dr5_no_fraction"])).all(None)


def test_every_kind_of_source_gives_the_same_table(tmp_path):
    datasets = pytest.importorskip("datasets")
    from gz_nbdev.data import HubImages

    source = galaxies(30)

    def png(i):
        buffer = BytesIO()
        Image.fromarray(source.images[i].permute(1, 2, 0).numpy()).save(buffer, "PNG")
        return b"" if i == 11 else buffer.getvalue()

    features = datasets.Features({"id_str": datasets.Value("string"), "image": datasets.Image(decode=False)})
    rows = {"id_str": source.ids, "image": [{"bytes": png(i), "path": None} for i in range(30)]}
    hub = datasets.Dataset.from_dict(rows, features=features)
    weights, stream = tiny_weights(), HubImages(hub.to_iterable_dataset())
    expected = predict(weights, source, tmp_path / "array", **RUN)
    sources = dict(stream=stream, hub=HubImages(hub), cache=load_pixels(source, weights.view, progress=False))
    for name, other in sources.items():
        store = predict(weights, other, tmp_path / name, **RUN | dict(progress=name == "stream"))
        assert store.summary == "28 written + 2 quarantined = 30 galaxies, each once"
        pd.testing.assert_frame_equal(store.read(), expected.read())
        assert set(store.failures().id_str) == {"J011", "J021"}
    assert not hasattr(stream, "__len__")
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "stream" / "shards").iterdir())
    predict(weights, stream, tmp_path / "stream", **RUN)   # again: nothing to do
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "stream" / "shards").iterdir())


KILLED = """
import os, signal, sys
from functools import partial
sys.path.insert(0, sys.argv[2])
import test_predict as t, gz_nbdev.predict as module
module.over_galaxies = partial(module.over_galaxies, shard_size=16)

def dying(function, left):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

def job(root, what=None, step=0):
    pid = os.fork()
    if pid: return os.waitpid(pid, 0)[1]
    if what == "batch": module._concentrations = dying(module._concentrations, [step])
    elif what: setattr(os, what, dying(getattr(os, what), [step]))
    t.predict(t.tiny_weights(), t.galaxies(), root, **t.RUN)
    os._exit(0)

ends = [job(sys.argv[1] + "/killed", *point) for point in
        [("fsync", 1), ("batch", 2), ("replace", 3), ("batch", 4), ("fsync", 4), ("batch", 1), ("replace", 5)]]
print(sum(end == signal.SIGKILL for end in ends), job(sys.argv[1] + "/killed"), job(sys.argv[1] + "/quiet"))
"""


def test_f1_killed_and_resumed_is_the_undisturbed_table(tmp_path):
    "SIGKILL in mid-batch, in mid-write, before and after a commit: bit for bit the table of a run nobody disturbed"
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", KILLED, str(tmp_path), here]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    kills, *ends = done.stdout.split()
    assert int(kills) >= 5 and ends == ["0", "0"], done.stderr
    killed, quiet = Store(tmp_path / "killed"), Store(tmp_path / "quiet")
    pd.testing.assert_frame_equal(killed.read(), quiet.read(), check_exact=True)
    assert [s["sha256"] for s in killed.shards] == [s["sha256"] for s in quiet.shards] and len(quiet.shards) > 2
    failed = [store.failures().sort_values("id_str").to_numpy().tolist() for store in (killed, quiet)]
    assert failed[0] == failed[1] and [f[0] for f in failed[0]] == ["J011", "J021"]
    assert len(killed) + len(failed[0]) == 60 and killed.header["finished"] == 60 and killed.verify().ok


def test_over_galaxies_keeps_features_of_finite_rows(tmp_path):
    def compute(pixels):
        values = pixels.float().mean((1, 2, 3)).numpy()
        assert len(pixels.ids) == len(values)
        return pd.DataFrame({"score": np.where(values > 250, np.nan, values)}), np.stack([values, values], 1)

    meta, options = dict(kind="test"), dict(batch_size=7, progress=False)
    store = over_galaxies(galaxies(), View(16), compute, tmp_path / "s", meta, **options)
    ids, features = store.read_features()
    assert len(ids) == 58 and "J021" not in ids
    np.testing.assert_allclose(features[:, 0], store.read()["score"])


# Reading back, publishing


def test_concentrations_are_stored_as_vectors_and_read_by_shard(tmp_path):
    store = predict(tiny_weights(), galaxies(), tmp_path / "s", **RUN)
    assert "fixed_size_list" in store.header["columns"]["concentrations"]
    assert "float>[204]" in store.header["columns"]["concentrations"]
    whole = Posterior.from_store(store)
    assert whole.concentrations.shape == (6, 58, 34) and whole.ids == store.read(["id_str"]).id_str.tolist()
    parts = [Posterior.from_table(t, DR5) for t in store.tables(["id_str", "concentrations"])]
    np.testing.assert_array_equal(np.concatenate([p.concentrations for p in parts], 1), whole.concentrations)
    table = store.read()
    numbers = table.drop(columns=["id_str", "concentrations"])
    np.testing.assert_allclose(whole.table().iloc[:, 1:], numbers, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="no multiple of the 2"):
        Posterior.from_table(table.assign(concentrations=[c[:203] for c in table.concentrations]), RINGS)
    with pytest.raises(InputError, match="no column 'concentrations'"):
        Posterior.from_table(table.drop(columns="concentrations"), DR5)
    plain = predict(tiny_weights(), galaxies(4), tmp_path / "t", **RUN | dict(concentrations=False))
    with pytest.raises(InputError, match="holds no concentrations"):
        Posterior.from_store(plain)


def test_published_form():
    published = published_catalog(some_posterior().table(), DR5)
    assert published.columns[0] == "iauname" and Schema.from_columns(published.columns).name == "desi"
    assert "smooth-or-featured_smooth_fraction" in published and "bar_proportion_volunteers_asked" in published
    assert len(published.columns) == 1 + 34 + 10
    assert published_catalog(some_posterior().table(), DR5, "desi").columns[0] == "id_str"
    with pytest.raises(InputError, match="did you mean 'decals'"):
        published_catalog(some_posterior().table(), DR5, "decal")
    with pytest.raises(InputError, match="schema of one campaign"):
        published_catalog(some_posterior().table(), get_schema("dr5+dr8"))
    with pytest.raises(InputError, match="no column 'bar-dr5_no_fraction'"):
        published_catalog(some_posterior().table().drop(columns="bar-dr5_no_fraction"), DR5)


# What goes wrong with weights


@pytest.mark.parametrize("other,message", [
    (dict(schema=get_schema("gz2")), "another tree than weights 0 .tiny.: 'smooth-or-featured-gz2'"),
    (dict(schema=get_schema("dr5+rings")), "'ring' .yes, no. where that has nothing more"),
    (dict(view=View(16, 0.5)), "another view than weights 0 .tiny.: crop 0.5 instead of 1.0"),
    (dict(view=View(16, mean=(0, 0, 0))), "mean .0.0, 0.0, 0.0. instead of"),
])
def test_networks_of_an_ensemble_must_agree(tmp_path, other, message):
    with pytest.raises(InputError, match=message):
        predict([tiny_weights(), tiny_weights(1, name="other", **other)], galaxies(4), tmp_path / "s", **RUN)
    assert not (tmp_path / "s").exists()


def test_weights_that_cannot_predict(tmp_path):
    with pytest.raises(InputError, match="answer no questions"):
        predict(replace(tiny_weights(), schema=None), galaxies(4), tmp_path / "s", **RUN)
    with pytest.raises(InputError, match="can run any code"):
        predict(tmp_path / "model.pkl", galaxies(4), tmp_path / "s", **RUN)
    with pytest.raises(InputError, match="no networks"):
        predict([], galaxies(4), tmp_path / "s", **RUN)
    with pytest.raises(InputError, match="without dropout, would all be the same"):
        predict(tiny_weights(dropout=0.0), galaxies(4), tmp_path / "s", **RUN)
    for wrong in (dict(turns=5), dict(turns=0), dict(passes=0), dict(passes=1.5)):
        with pytest.raises(InputError, match="turns|passes"):
            predict(tiny_weights(), galaxies(4), tmp_path / "s", **RUN | wrong)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("change,message", [
    (dict(weights=tiny_weights(1)), "weights was"), (dict(passes=4), "passes was 3, now is 4"),
    (dict(turns=1), "turns was 2, now is 1"), (dict(seed=1), "seed was 0, now is 1"),
    (dict(concentrations=False), "concentrations was True"),
    (dict(weights=tiny_weights(view=View(16, 0.9))), "view was"),
])
def test_a_store_never_mixes(tmp_path, change, message):
    "Not even networks that share an encoder: heads differ"
    predict(tiny_weights(), galaxies(4), tmp_path / "s", **RUN)
    before = (tmp_path / "s" / "manifest.jsonl").read_bytes()
    options = RUN | dict(weights=tiny_weights()) | change
    with pytest.raises(InputError, match=message):
        predict(options.pop("weights"), galaxies(4), tmp_path / "s", **options)
    assert (tmp_path / "s" / "manifest.jsonl").read_bytes() == before


@pytest.mark.parametrize("cached", [False, True])
def test_another_catalog_is_refused_before_anything_is_computed(tmp_path, cached):
    ours, theirs = (ArrayImages([f"{name}{i}" for i in range(5)], galaxies(5).images) for name in "AB")
    predict(tiny_weights(), ours, tmp_path / "s", **RUN)
    before = {file: file.read_bytes() for file in (tmp_path / "s").rglob("*") if file.is_file()}
    if cached: theirs = load_pixels(theirs, tiny_weights().view, progress=False)
    with pytest.raises(InputError, match="holds galaxies that are not in the input: 5 \\(A0, A1.*Use another folder"):
        predict(tiny_weights(), theirs, tmp_path / "s", **RUN)
    assert {file: file.read_bytes() for file in (tmp_path / "s").rglob("*") if file.is_file()} == before
    assert "5 written" in predict(tiny_weights(), ours, tmp_path / "s", **RUN).summary   # which goes on as before
