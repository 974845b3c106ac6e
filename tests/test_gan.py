"GAN: training that goes on where it was stopped, weights that are checked, scores that depend on the galaxy alone"
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gz_nbdev import gan as g
from gz_nbdev.catalog import read_folder
from gz_nbdev.consensus import read_latents, read_scores
from gz_nbdev.data import ArrayImages, FolderImages, View, load_pixels
from gz_nbdev.models import GalaxyModel, create_encoder, load_weights, save_weights
from gz_nbdev.schema import InputError
from gz_nbdev.store import sha256_file

SMALL = dict(view=View(32), width=.125, latent=16, bs=16, progress=False, device="cpu")


def pictures(n: int, size: int = 32, seed: int = 0) -> ArrayImages:
    "Noise with a bright middle"
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    light = 150 * np.exp(-(x**2 + y**2) / (2 * rng.uniform(2, 6, (n, 1, 1))**2))
    pixels = (light[:, None] + rng.normal(20, 5, (n, 3, size, size))).clip(0, 255).astype(np.uint8)
    return ArrayImages([f"g{i}" for i in range(n)], torch.from_numpy(pixels))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return g.train_gan(pictures(80), tmp_path_factory.mktemp("gan"), iterations=4, encoder_steps=8, **SMALL)


def test_architecture_is_the_published_one():
    gan = g.GalaxyGan()
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in gan.named_children()}
    conv = [3 * 64 * 25 + 64, 64 * 128 * 25 + 128, 128 * 256 * 25 + 256, 256 * 512 * 25 + 512]
    assert count["critic"] == sum(conv) + 6 * 6 * 512 + 1
    assert count["encoder"] == sum(conv) + 6 * 6 * 512 * 128 + 128
    up = [512 * 256 * 25 + 256, 256 * 128 * 25 + 128, 128 * 64 * 25 + 64, 64 * 3 * 25 + 3]
    assert count["generator"] == 128 * 6 * 6 * 512 + 6 * 6 * 512 + sum(up)
    assert sum(p.numel() for p in g.GalaxyGan(96, .5).parameters()) == pytest.approx(5.6e6, rel=.02)


@pytest.mark.parametrize("size", [0, 40, 100, 272])
def test_other_sizes_are_refused(size):
    with pytest.raises(InputError, match="multiple of 16"): g.GalaxyGan(size)


def test_slope_penalty_is_that_of_autograd():
    torch.manual_seed(0)
    adversary = g.Adversary(g.GalaxyGan(16, .1, 8))
    real, z, mix = torch.rand(3, 3, 16, 16), torch.randn(3, 8), torch.tensor([0., 1., .3]).view(3, 1, 1, 1)
    adversary.gan.generator.eval()
    between = torch.lerp(real, adversary.gan.generator(z).detach(), mix).requires_grad_()
    slopes = [torch.autograd.grad(adversary.gan.critic(between[i:i + 1]).sum(), between)[0][i].norm() for i in range(3)]
    torch.testing.assert_close(adversary(real, z, mix)[:, 2].detach(), torch.stack(slopes), rtol=1e-4, atol=1e-6)


def test_critic_steps_leave_the_generator_alone_and_turns_the_critic():
    gan = g.GalaxyGan(16, .1, 8)
    source = pictures(80, 16).images
    dls = g._loaders(source, 8, 10, 16, 0, torch.device("cpu"))
    turn = g.GeneratorTurn(gan, every=5)
    learn = g.Learner(dls, g.Adversary(gan), g.critic_loss, opt_func=g._adam, lr=1e-3, cbs=turn,
                      splitter=lambda model: [list(model.gan.critic.parameters())])
    seen = []
    class Look(g.Callback):
        order = 90
        def after_batch(self):
            if self.training: seen.append([gan.generator.first.weight.detach().clone(), gan.critic.last.weight.detach().clone()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, wd=0., cbs=Look())
    moved = [[not torch.equal(a, b) for a, b in zip(one, other)] for one, other in zip(seen, seen[1:])]
    assert [m[0] for m in moved] == [i % 5 == 3 for i in range(9)]
    assert all(m[1] for m in moved)


def test_stopped_training_ends_where_an_undisturbed_one_does(tmp_path, monkeypatch):
    source, asked = pictures(80), dict(SMALL, iterations=200, encoder_steps=20)
    monkeypatch.setattr(g, "_loaders", lambda *args, was=g._loaders, **stage: was(*args[:2], 10, *args[3:], **stage))
    whole = g.train_gan(source, tmp_path / "whole", **asked)
    kept = g._Keep.after_epoch
    def stop(self):
        kept(self)
        if len(self.rows) == 1 and self.turn is not None: raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(g._Keep, "after_epoch", stop)
        g.train_gan(source, tmp_path / "stopped", **asked)
    assert not (tmp_path / "stopped" / "weights").exists()
    again = g.train_gan(source, tmp_path / "stopped", **asked)
    assert again.hash == whole.hash
    assert len(pd.read_csv(tmp_path / "stopped" / "history.csv")) == 3


def test_another_question_in_the_same_folder_is_refused(tmp_path):
    g.train_gan(pictures(80), tmp_path, iterations=1, encoder_steps=1, **SMALL)
    with pytest.raises(InputError, match="holds another training .iterations was 1, now is 2"):
        g.train_gan(pictures(80), tmp_path, iterations=2, encoder_steps=1, **SMALL)
    with pytest.raises(InputError, match="pictures was"):
        g.train_gan(pictures(81), tmp_path, iterations=1, encoder_steps=1, **SMALL)
    with pytest.raises(InputError, match="pixels was"):
        g.train_gan(pictures(80, seed=1), tmp_path, iterations=1, encoder_steps=1, **SMALL)
    (tmp_path / "adversary.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="delete it to begin anew"):
        g.train_gan(pictures(80), tmp_path, iterations=1, encoder_steps=1, **SMALL)


@pytest.mark.parametrize("stage", ["adversary", "encoder"])
def test_a_flipped_bit_in_what_is_gone_on_with_is_found(tmp_path, stage):
    asked = dict(SMALL, iterations=1, encoder_steps=1)
    weights = g.train_gan(pictures(80), tmp_path, **asked)
    file = tmp_path / f"{stage}.safetensors"
    whole = file.read_bytes()
    places = [whole.index(b"sha256"), whole.index(b"sha256") + 12, whole.index(b"valid_loss") + 16, len(whole) // 2, len(whole) - 1]
    for place in places:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        with pytest.raises(InputError, match=f"{stage}.safetensors is not what was written"): g.train_gan(pictures(80), tmp_path, **asked)
    file.write_bytes(whole)
    assert g.train_gan(pictures(80), tmp_path, **asked).hash == weights.hash


def test_files_of_before_there_were_checksums_are_gone_on_with(tmp_path):
    asked = dict(SMALL, iterations=1, encoder_steps=1)
    weights = g.train_gan(pictures(80), tmp_path, **asked)
    for stage in ("adversary", "encoder"):
        file = tmp_path / f"{stage}.safetensors"
        with safe_open(file, "pt") as opened: note = json.loads(opened.metadata()["gz_nbdev"])
        note["settings"].pop("pixels")
        save_file(load_file(file), file, {"gz_nbdev": json.dumps(note)})
    assert g.train_gan(pictures(80), tmp_path, **asked).hash == weights.hash


@pytest.mark.parametrize("asked, says", [(dict(iterations=0), "iterations=0"), (dict(iterations=-5), "iterations=-5"),
    (dict(encoder_steps=0), "encoder_steps=0"), (dict(width=float("inf")), "width=inf"), (dict(width=float("nan")), "width=nan"),
    (dict(width=0), "width=0"), (dict(width=-1), "width=-1"), (dict(seed=-1), "seed=-1"), (dict(seed=2**32), "seed=4294967296")])
def test_numbers_that_no_training_can_have(tmp_path, asked, says):
    with pytest.raises(InputError, match=says): g.train_gan(pictures(80), tmp_path, **SMALL | asked)
    assert not list(tmp_path.iterdir())


def occupy(folder, by):
    "Put something where weights belong"
    if by == "file": folder.write_text("mine")
    elif by == "link":
        (folder.parent / "elsewhere").mkdir()
        folder.symlink_to("elsewhere")
    elif by == "encoder": save_weights(GalaxyModel(create_encoder("test_resnet"), 2), folder, View(32))
    else:
        folder.mkdir()
        (folder / by).write_text("{}")


@pytest.mark.parametrize("by, says", [("file", "is a link or a file"), ("link", "is a link or a file"), ("encoder", "holds an encoder|holds config"),
                                      ("precious.txt", "holds precious.txt"), ("gz.json", "holds gz.json")])
def test_nothing_but_a_gan_is_replaced_by_a_gan(trained, tmp_path, by, says):
    occupy(tmp_path / "weights", by)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"weights ({says}).*give another out"): g.train_gan(pictures(80), tmp_path, **SMALL)
    with pytest.raises(InputError, match=f"weights ({says}).*give another out"): g.save_gan(trained.model, tmp_path / "weights", trained.view)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_gan_is_replaced_by_a_gan_unless_there_is_more(trained, tmp_path):
    g.save_gan(trained.model, tmp_path / "w", trained.view)
    folder = g.save_gan(trained.model, tmp_path / "w", trained.view)
    with pytest.raises(InputError, match="holds a GAN"): save_weights(GalaxyModel(create_encoder("test_resnet"), 2), folder, View(32))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds notes.txt, which"): g.save_gan(trained.model, folder, trained.view)
    assert (folder / "notes.txt").exists()


def test_pictures_from_which_nothing_can_be_learned(tmp_path):
    black = ArrayImages([str(i) for i in range(80)], torch.zeros(80, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match="all of one shade"): g.train_gan(black, tmp_path / "a", **SMALL)
    same = ArrayImages([str(i) for i in range(80)], pictures(1).images.repeat(80, 1, 1, 1))
    with pytest.raises(InputError, match="all alike"): g.train_gan(same, tmp_path / "b", **SMALL)
    with pytest.raises(InputError, match="31 pictures can be used"): g.train_gan(pictures(31), tmp_path / "c", **SMALL)
    with pytest.raises(InputError, match="'izi_f'"): g.train_gan(pictures(80), tmp_path / "d", mode="izif", **SMALL)
    with pytest.raises(InputError, match="multiple of 16"): g.train_gan(pictures(80), tmp_path / "e", **dict(SMALL, view=View(40)))


@pytest.mark.parametrize("mode", list(g.MODES))
def test_every_mode_trains_the_encoder_alone(tmp_path, mode):
    weights = g.train_gan(pictures(80), tmp_path, mode=mode, iterations=1, encoder_steps=30, **SMALL)
    before = {k.partition("|")[2]: v for k, v in load_file(tmp_path / "adversary.safetensors").items() if k.startswith("model|")}
    after = weights.model.state_dict()
    for name, value in after.items():
        same = torch.equal(value, before[f"gan.{name}"].half().float())
        assert same == (not name.startswith("encoder.")), name


def test_scores_are_those_of_the_formula_and_of_each_galaxy_alone(trained, tmp_path):
    source = pictures(37, seed=5)
    gan, x = trained.model, load_pixels(source, trained.view, progress=False).pixels.float() / 255
    table = g.score_pictures(trained, source, tmp_path / "all", progress=False).read().set_index("id_str")
    for batch in (1, 7):
        other = g.score_pictures(trained, source, tmp_path / f"{batch}", batch_size=batch, progress=False).read().set_index("id_str")
        np.testing.assert_allclose(other.loc[table.index], table, rtol=1e-4)
    with torch.no_grad():
        for i, name in list(enumerate(source.ids))[:5]:
            one = x[i:i + 1]
            drawn = gan(one)
            features = [gan.critic.convs(picture).flatten() for picture in (one, drawn)]
            np.testing.assert_allclose(table.image_score[name], ((one - drawn)**2).sum(), rtol=1e-4)
            np.testing.assert_allclose(table.feature_score[name], ((features[0] - features[1])**2).sum(), rtol=1e-4)
            np.testing.assert_allclose([table.flux[name], table.variance[name]], [one.sum(), one.double().var()], rtol=1e-5)


def test_published_form_is_read_back(trained, tmp_path):
    store = g.score_pictures(trained, pictures(20), tmp_path / "store", progress=False)
    file = g.publish_scores(store, tmp_path / "out", weight=.3)
    assert file.read_text().splitlines()[0] == "counter,filename,anomaly_score,image_score,feature_score"
    scores, codes = read_scores(file), read_latents(tmp_path / "out" / "latents.npy")
    ids, features = store.read_features()
    assert list(scores.id_str) == list(ids)
    np.testing.assert_array_equal(codes, features)
    np.testing.assert_allclose(scores.anomaly_score, .7 * scores.image_score + .3 * scores.feature_score)
    with pytest.raises(InputError, match="between 0 and 1"): g.gan_table(store, 1.5)


def test_table_ranks_by_the_features_and_names_flat_pictures(trained, tmp_path):
    source = pictures(20)
    source.images[3] = 0
    store = g.score_pictures(trained, source, tmp_path, progress=False)
    with pytest.warns(UserWarning, match="1 pictures are of one shade throughout .g3."): table = g.gan_table(store)
    assert table.feature_mean.is_monotonic_decreasing and table.percentile[0] == 100
    middle = table.feature_mean.median()
    assert table.feature_z[0] == pytest.approx((table.feature_mean[0] - middle) / (1.4826 * (table.feature_mean - middle).abs().median()))
    assert (g.robust_z(pd.Series(np.ones(5))) == 0).all() and (g.robust_z(pd.Series([1., 1, 1, 5])) == 0).all()
    two = pd.DataFrame(dict(a=[0., 1, 2, 3, 4], b=1.))
    np.testing.assert_allclose(g.robust_z(two).a, (two.a - 2) / 1.4826)
    assert (g.robust_z(two).b == 0).all()


def test_a_folder_of_stamps_is_taken_as_it_is(trained, tmp_path):
    (tmp_path / "png").mkdir()
    images = {"large": pictures(1, 50).images[0], "small": pictures(1, 21).images[0], "fits": pictures(1).images[0]}
    for name, pixels in images.items(): Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "png" / f"{name}.png")
    (tmp_path / "png" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    source = FolderImages(read_folder(tmp_path / "png"), tmp_path / "png")
    store = g.score_pictures(trained, source, tmp_path / "out", view=View(32, native=True), progress=False)
    assert list(store.failures().id_str) == ["torn"]
    padded = torch.zeros(3, 32, 32)
    padded[:, 5:26, 5:26] = images["small"] / 255
    stamps = torch.stack([images["large"][:, 9:41, 9:41] / 255, padded, images["fits"] / 255])
    expected, _ = g.gan_scores(trained.model, stamps)
    table = store.read().set_index("id_str").loc[list(images)]
    np.testing.assert_allclose(table[expected.columns], expected, rtol=1e-4)
    with pytest.raises(InputError, match="trained on 32 px, and a view of 96 px"):
        g.score_pictures(trained, source, tmp_path / "other", view=View(96, native=True))


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(InputError, match="no picture under"): read_folder(tmp_path)


def spoil(folder, change):
    "Change the tensors of a folder of weights, and its checksum with them"
    file, note = folder / "gan.safetensors", folder / "gz.json"
    state = change(load_file(file))
    save_file(state, file)
    info = json.loads(note.read_text())
    info["sha256"]["gan.safetensors"] = sha256_file(file)
    note.write_text(json.dumps(info))


@pytest.mark.parametrize("change,says", [
    (lambda s: {k: v for k, v in s.items() if k != "critic.last.bias"}, "critic.last.bias is missing"),
    (lambda s: s | {"extra": torch.ones(1)}, "extra is unknown"),
    (lambda s: s | {"critic.last.bias": torch.ones(3)}, r"critic.last.bias is \(3,\), not \(1,\)"),
    (lambda s: s | {"critic.last.bias": torch.tensor([float("nan")])}, "critic.last.bias holds numbers that are not finite")])
def test_weights_that_do_not_fit(trained, tmp_path, change, says):
    folder = g.save_gan(trained.model, tmp_path / "gan", trained.view)
    spoil(folder, change)
    with pytest.raises(InputError, match=says): g.load_gan(folder)


def test_weights_of_another_kind_or_damaged(trained, tmp_path):
    with pytest.raises(InputError, match="no folder of weights"): g.load_gan("gz-sim-gann")
    with pytest.raises(InputError, match="an encoder, not a GAN"): g.load_gan(g.Path(g.gz_nbdev.__file__).parent / "weights" / "gz-sim-small")
    folder = g.save_gan(trained.model, tmp_path / "gan", trained.view)
    with pytest.raises(InputError, match="a GAN, not an encoder: `load_gan`"): load_weights(folder)
    (folder / "gan.safetensors").write_bytes((folder / "gan.safetensors").read_bytes()[:-1])
    with pytest.raises(InputError, match="checksum differs"): g.load_gan(folder)


@pytest.mark.parametrize("change, says", [(lambda i: {}, "lacks name, view"), (lambda i: [], "describes no weights"),
    (lambda i: None, "describes no weights"), (lambda i: {k: v for k, v in i.items() if k != "sha256"}, "lacks sha256"),
    (lambda i: {k: v for k, v in i.items() if k != "view"}, "lacks view"), (lambda i: i | dict(sha256={}), "lacks checksum of gan"),
    (lambda i: i | dict(view=None), "no sound folder"), (lambda i: i | dict(size="32"), "no sound folder")])
def test_descriptions_that_describe_nothing(trained, tmp_path, change, says):
    folder = g.save_gan(trained.model, tmp_path / "weights", trained.view)
    (folder / "gz.json").write_text(json.dumps(change(json.loads((folder / "gz.json").read_text()))))
    with pytest.raises(InputError, match=f"{folder}.*{says}"): g.load_gan(folder)


def test_the_folder_above_the_weights_is_pointed_down(trained, tmp_path):
    folder = g.save_gan(trained.model, tmp_path / "weights", trained.view)
    with pytest.raises(InputError, match=f"{folder} has: give that"): g.load_gan(tmp_path)


def test_the_shipped_gan_draws_galaxies_and_knows_them(tmp_path):
    from scipy.stats import spearmanr
    weights = g.load_gan()
    drawn = g.drawn_galaxies(weights.model, torch.randn(64, weights.model.latent, generator=torch.Generator().manual_seed(0)))
    real = load_pixels(g.normal_galaxies(64, seed=9, progress=False), weights.view, progress=False).pixels / 255
    middle, edge = (slice(28, 36),) * 2, (slice(0, 8),) * 2
    for x in (drawn, real): assert (x[:, :, *middle].mean((1, 2, 3)) > 1.5 * x[:, :, *edge].mean((1, 2, 3))).float().mean() > .9
    with torch.no_grad(): again = weights.model(real)
    assert spearmanr(again.mean((1, 2, 3)), real.mean((1, 2, 3))).statistic > .8


@pytest.mark.parametrize("kind", ["encoder", "gan"])
def test_weights_on_a_full_disk_leave_the_older_ones(tmp_path, monkeypatch, kind):
    import gz_nbdev.gan as gan_module
    import gz_nbdev.models as models_module

    def save():
        if kind == "gan": return gan_module.save_gan(gan_module.GalaxyGan(16, .125), tmp_path / "weights", View(16))
        return save_weights(GalaxyModel(create_encoder("test_resnet"), 2), tmp_path / "weights", View(32))
    def full(*args, **kwargs): raise OSError(28, "No space left on device")
    save()
    before = {p.name: p.read_bytes() for p in (tmp_path / "weights").iterdir()}
    for module in (gan_module, models_module): monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(InputError, match="No space left.*make room"): save()
    assert {p.name: p.read_bytes() for p in (tmp_path / "weights").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_a_cache_of_another_view_is_refused(tmp_path):
    cache = load_pixels(pictures(80), View(32, .5), progress=False)
    with pytest.raises(InputError, match="made with crop=0.5, and crop=1.0 is asked for"): g.train_gan(cache, tmp_path, iterations=2, **SMALL)
    assert not (tmp_path / "weights").exists()


def test_no_stage_is_judged_on_what_another_was_trained_on():
    pixels = pictures(80).images
    first, second = (g._loaders(pixels, 16, 3, 16, 0, torch.device("cpu"), stage) for stage in (0, 1))
    for dls in (first, second):
        assert dls.valid.dataset.rows.tolist() == first.valid.dataset.rows.tolist()
        assert not set(dls.train.dataset.rows.tolist()) & set(first.valid.dataset.rows.tolist())
    assert not torch.equal(first.train.dataset[0][1], second.train.dataset[0][1])   # but each draws its own
