"Runs that are killed, damaged or misused, and the levers: what `gz_nbdev.train` promises beyond its notebook"
import json
import multiprocessing
import os
import shutil
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from fastai.callback.core import Callback
from fastai.learner import AvgLoss, AvgSmoothLoss
from fastai.metrics import AccumMetric
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3

from gz_nbdev import train
from gz_nbdev.data import ArrayImages, PixelCache, View, galaxy_dls
from gz_nbdev.gan import GalaxyGan, save_gan
from gz_nbdev.losses import DirichletMultinomialLoss
from gz_nbdev.models import GalaxyModel, Weights, create_encoder, is_weights, load_weights, note_temperature, save_weights
from gz_nbdev.schema import InputError, get_schema
from gz_nbdev.store import note_file, sha256_file
from gz_nbdev.train import (AverageWeights, FusedAdam, Shrink, fast_plan, fit_for, galaxy_learner, layer_groups, layer_rates, read_checkpoint,
                            save_learner, train_votes)

RINGS = get_schema("rings")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    "What is measured here does not stay with the user"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


DR5 = get_schema("dr5")


def galaxies(n=64, schema=RINGS, seed=0):
    "Discs whose brightness goes with the first answer of each question: something to learn, made in no time"
    rng = np.random.default_rng(seed)
    bright = rng.uniform(.2, 1, n)
    y, x = np.mgrid[:32, :32] - 15.5
    disc = np.exp(-(x**2 + y**2) / 60)
    pixels = (disc * bright[:, None, None] * 255)[:, None].repeat(3, 1) + rng.uniform(0, 10, (n, 3, 32, 32))
    catalog = pd.DataFrame({"id_str": [f"g{i}" for i in range(n)]})
    for question in schema.questions:
        first = rng.binomial(20, bright)
        catalog[question.columns] = 0
        catalog[question.columns[0]], catalog[question.columns[1]] = first, 20 - first
    return catalog, torch.tensor(pixels.clip(0, 255).astype(np.uint8))


def make_dls(n=64, schema=RINGS, seed=0, bs=16, view=View(32), **kwargs):
    catalog, pixels = galaxies(n, schema, seed)
    index = pd.DataFrame(dict(id_str=catalog.id_str, hash="", reason=""))
    return galaxy_dls(catalog, PixelCache(pixels, view, index), schema=schema, bs=bs, device="cpu", **kwargs)


def make_learner(encoder="test_resnet", cbs=None, dls=None, **kwargs):
    learn = galaxy_learner(make_dls() if dls is None else dls, encoder=encoder, cbs=cbs, **kwargs)
    learn.remove_cb(learn.progress)
    learn.logger = lambda *args: None
    return learn


def weights_of(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class KillAt(Callback):
    "Send this process a signal after the step `step` of training, or in the validation that follows it"
    def __init__(self, step, number=signal.SIGKILL, validating=False):
        super().__init__()
        self.step, self.number, self.validating = step, number, validating
        self.order = 100 if number == signal.SIGKILL else 60  # after the checkpoint of that step, or before

    def after_batch(self):
        if self.train_iter == self.step and self.training != self.validating: os.kill(os.getpid(), self.number)


LEVERS = dict(average=.9, layer_decay=.7, precision="bf16")  # everything that has a state of its own


def run_in_child(out, kill=None, before_rename=None, limit=None, levers=True):
    "One call of `fit_for` in this process, with an end by violence if one is asked for"
    torch.set_num_threads(1)
    train.CHECKPOINT_SECONDS, train.CHECKPOINT_SHARE = 0, 1e9  # one after every step
    if before_rename is not None: _die_in_write(before_rename)
    if limit is not None:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    learn = make_learner(cbs=[KillAt(*kill)] if kill else None, **(LEVERS if levers else {}))
    try: fit_for(learn, epochs=3, out=out)
    except InputError as error:
        out.with_suffix(".said").write_text(str(error))
        os._exit(2)
    except KeyboardInterrupt: os._exit(130)


def _die_in_write(number):
    "SIGKILL when the checkpoint `number` is on disk under its temporary name, half of it"
    def atomic_write(path, content, count=[0]):
        if str(path).endswith(".safetensors"):
            count[0] += 1
            if count[0] == number:
                path.with_name(f".{path.name}.0.tmp").write_bytes(content[:len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)
    write, train.atomic_write = train.atomic_write, atomic_write


@pytest.fixture(scope="module")
def child():
    "Call `run_in_child` in a process of its own, forked from one that has everything imported; its exit code"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gz_nbdev.train", "gz_nbdev.simulate"])

    def call(*args, **kwargs):
        process = context.Process(target=run_in_child, args=args, kwargs=kwargs)
        process.start()
        process.join(120)
        return process.exitcode
    return call


def places(out):
    "Epoch and batch of the checkpoints, the furthest first"
    return [tuple(map(int, p.name.split("-")[1:4:2])) for p in train._checkpoints(out / "checkpoints")]


def outcome(out):
    "What a run left: the last checkpoint, best weights and history"
    file = train._checkpoints(out / "checkpoints")[0]
    tensors, rest = read_checkpoint(file)
    rest.pop("seconds")
    return tensors, rest, load_file(out / "best.safetensors"), (out / "history.csv").read_text()


def assert_same_outcome(a, b):
    for one, other in zip(outcome(a), outcome(b)):
        if isinstance(one, dict) and "model.head.1.bias" in one: assert same(one, other)
        elif isinstance(one, dict) and "head.1.bias" in one: assert same(one, other)
        else: assert one == other


@pytest.fixture(scope="module")
def undisturbed(child, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert child(out) == 0
    return out


# ---------------------------------------------------------------- killed

@pytest.mark.xdist_group("train_kill")
@pytest.mark.parametrize("kill", [(1,), (3,), (3, signal.SIGKILL, True), (5,), (9, signal.SIGKILL, True)],
                         ids=lambda k: f"step{k[0]}{'-validating' if len(k) > 2 else ''}")
def test_killed_run_ends_with_the_same_bits(child, undisturbed, tmp_path, kill):
    "Steps 3, 6 and 9 end an epoch; batches, their order and turns, dropout, moments and averages must all go on"
    assert child(tmp_path, kill=kill) == -signal.SIGKILL
    assert not (tmp_path / "best.safetensors").exists()
    assert child(tmp_path) == 0
    assert_same_outcome(tmp_path, undisturbed)


@pytest.mark.xdist_group("train_kill")
def test_killed_again_and_again(child, undisturbed, tmp_path):
    for step in (2, 6, 7): assert child(tmp_path, kill=(step,)) == -signal.SIGKILL
    assert child(tmp_path) == 0
    assert_same_outcome(tmp_path, undisturbed)


@pytest.mark.xdist_group("train_kill")
@pytest.mark.parametrize("write", [1, 5])
def test_killed_while_a_checkpoint_is_written(child, undisturbed, tmp_path, write):
    assert child(tmp_path, before_rename=write) == -signal.SIGKILL
    assert list((tmp_path / "checkpoints").glob(".*.tmp"))
    assert child(tmp_path) == 0
    assert not list((tmp_path / "checkpoints").glob(".*.tmp"))
    assert_same_outcome(tmp_path, undisturbed)


@pytest.mark.xdist_group("train_kill")
@pytest.mark.parametrize("number, code, validating", [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)],
                         ids=["ctrl-c", "sigterm"])
def test_asked_to_stop(child, undisturbed, tmp_path, number, code, validating):
    assert child(tmp_path, kill=(6, number, validating)) == code
    tensors, rest = read_checkpoint(train._checkpoints(tmp_path / "checkpoints")[0])
    assert (rest["step"], len(rest["rows"])) == (6, 2 if validating else 1)
    assert child(tmp_path) == 0
    assert_same_outcome(tmp_path, undisturbed)


@pytest.mark.xdist_group("train_kill")
def test_full_disk(child, undisturbed, tmp_path):
    assert child(tmp_path, kill=(5,)) == -signal.SIGKILL
    before = {p.name: p.read_bytes() for p in (tmp_path / "checkpoints").glob("*.safetensors")}
    assert child(tmp_path, limit=100_000) == 2
    said = tmp_path.with_suffix(".said").read_text()
    assert "cannot be written: File too large" in said and "the same call goes on from the last checkpoint" in said
    assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoints").glob("*.safetensors")} == before
    assert child(tmp_path) == 0
    assert_same_outcome(tmp_path, undisturbed)


def test_two_checkpoints_are_kept_and_nothing_is_pickled(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(torch, "save", None)
    monkeypatch.setattr(torch, "load", None)
    fit_for(make_learner(), epochs=2, out=tmp_path)
    assert len(train._checkpoints(tmp_path / "checkpoints")) == 2
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} - {".lock"}
    assert {n for n in names if not n.startswith("checkpoints")} == {"training.json", "history.csv", "best.safetensors"}
    assert all(n.endswith(".safetensors") for n in names if n.startswith("checkpoints"))


def test_without_a_folder_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = make_learner(), make_learner()
    light, heavy = fit_for(a, epochs=2), fit_for(b, epochs=2, out="out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert same(weights_of(a), weights_of(b)) and light["history"].equals(heavy["history"])


# ---------------------------------------------------------------- damaged, foreign, different

@pytest.fixture
def stopped(tmp_path, monkeypatch):
    "A run that was asked to stop after step 4 of 9; two checkpoints, those of steps 3 and 4"
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", 1e9)
    with pytest.raises(KeyboardInterrupt): fit_for(make_learner(cbs=KillAt(4, signal.SIGINT)), epochs=3, out=tmp_path)
    assert places(tmp_path) == [(1, 1), (1, 0)]
    return tmp_path


def finish(out, **kwargs):
    learn = make_learner(**kwargs)
    fit_for(learn, epochs=3, out=out)
    return weights_of(learn)


@pytest.fixture(scope="module")
def straight():
    learn = make_learner()
    fit_for(learn, epochs=3)
    return weights_of(learn)


def test_ctrl_c_in_a_notebook_goes_on_with_the_same_learner(tmp_path, straight):
    stop = KillAt(4, signal.SIGINT)
    learn = make_learner(cbs=stop)
    with pytest.raises(KeyboardInterrupt): fit_for(learn, epochs=3, out=tmp_path)
    learn.remove_cb(stop)
    fit_for(learn, epochs=3, out=tmp_path)
    assert same(weights_of(learn), straight)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_ctrl_c_stops_at_once(tmp_path):
    class Twice(Callback):
        order = -20
        def before_batch(self):
            if self.training and self.train_iter == 2:
                for _ in range(2): os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): fit_for(make_learner(cbs=Twice()), epochs=2, out=tmp_path)
    assert not train._checkpoints(tmp_path / "checkpoints")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("damage", ["half", "bit", "empty", "renamed"])
def test_damaged_checkpoint_is_passed_over(stopped, straight, capsys, damage):
    newest = train._checkpoints(stopped / "checkpoints")[0]
    data = bytearray(newest.read_bytes())
    if damage == "bit": data[len(data) // 2] ^= 1
    newest.write_bytes(data[:dict(half=len(data) // 2, empty=0).get(damage, len(data))])
    if damage == "renamed": newest.rename(newest.with_name("mine.safetensors"))
    assert same(finish(stopped), straight)
    said = capsys.readouterr().out
    assert ("is not called like" if damage == "renamed" else "is not what was written") in said and "passed over" in said
    assert "Going on after step 3" in said


def test_checkpoint_of_another_run_is_passed_over(stopped, straight, tmp_path_factory, capsys):
    other = tmp_path_factory.mktemp("other")
    fit_for(make_learner(), epochs=2, lr=1e-4, out=other)
    foreign = train._checkpoints(other / "checkpoints")[0]
    (stopped / "checkpoints" / foreign.name).write_bytes(foreign.read_bytes())
    assert same(finish(stopped), straight)
    assert f"{foreign.name} is of another run: passed over" in capsys.readouterr().out


def test_checkpoints_of_another_run_that_are_further_on_leave_room(tmp_path):
    fit_for(make_learner(), epochs=4, out=tmp_path)
    (tmp_path / "training.json").unlink()
    theirs, begun = set(train._checkpoints(tmp_path / "checkpoints")), []
    class StopAt(Callback):
        order = 80
        def __init__(self, last): self.last = last
        def before_epoch(self): begun.append(self.epoch)
        def after_epoch(self):
            if self.epoch == self.last: raise KeyboardInterrupt
    for last in (1, 2):
        with pytest.raises(KeyboardInterrupt): fit_for(make_learner(cbs=[StopAt(last)]), epochs=6, out=tmp_path)
        assert theirs < set(train._checkpoints(tmp_path / "checkpoints"))
    assert begun == [0, 1, 2]


def test_a_learner_that_was_trained_before_is_no_fresh_one(tmp_path):
    learn = make_learner()
    fit_for(learn, epochs=1)
    fit_for(learn, epochs=1, out=tmp_path)
    with pytest.raises(InputError, match="holds another run: start was"): fit_for(make_learner(), epochs=1, out=tmp_path)
    before = weights_of(learn)
    fit_for(learn, epochs=1, out=tmp_path)   # the cell is run again
    assert same(weights_of(learn), before)


def test_epochs_may_be_a_float(): assert fit_for(make_learner(), epochs=1.0)["epochs"] == 1


def test_nothing_was_learned(tmp_path):
    learn = make_learner()
    for p in learn.model.parameters(): p.data.fill_(torch.nan)
    with pytest.raises(InputError, match="no epoch was finished"): save_learner(learn, tmp_path / "w", fit_for(learn, epochs=1))


def test_no_checkpoint_left_begins_anew(stopped, straight):
    for file in train._checkpoints(stopped / "checkpoints"): file.write_bytes(b"")
    assert same(finish(stopped), straight)


def test_a_checkpoint_that_is_no_safetensors(tmp_path):
    assert read_checkpoint(tmp_path / "epoch-0000-batch-000001-0123456789abcdef.safetensors")[1].startswith("cannot be read")
    file = tmp_path / "epoch-0000-batch-000001-e3b0c44298fc1c14.safetensors"  # the hash of nothing
    file.write_bytes(b"")
    assert read_checkpoint(file)[0] is None and "is not a checkpoint" in read_checkpoint(file)[1]


@pytest.mark.parametrize("what, kwargs, fit", [
    ("lr was 0.002, now is 0.001", {}, dict(lr=1e-3)),
    ("epochs was 3, now is 4", {}, dict(epochs=4)),
    ("seed was 0, now is 1", {}, dict(seed=1)),
    ("patience was null, now is 2", {}, dict(patience=2)),
    ("batch_size was 16, now is 8", dict(dls=lambda: make_dls(bs=8)), {}),
    ("galaxies was \"51 + 13\", now is", dict(dls=lambda: make_dls(n=60)), {}),
    ("pictures was", dict(dls=lambda: other_pictures()), {}),
    ("votes was", dict(dls=lambda: make_dls(seed=3)), {}),
    ("view greyscale was false, now is true", dict(dls=lambda: make_dls(view=View(32, greyscale=True))), {}),
    ("schema was [\"rings\"", dict(dls=lambda: make_dls(schema=DR5)), {}),
    ("augment was", dict(dls=lambda: make_dls(augment=False)), {}),
    ("encoder was \"test_resnet\", now is \"test_convnext\"", dict(encoder="test_convnext"), {}),
    ("start was", dict(seed=1), {}),
    ("dropout was 0.2, now is 0.5", dict(dropout=.5), {}),
    ("layer_decay was null, now is 0.5", dict(layer_decay=.5), {}),
    ("moms was [0.9, 0.8, 0.9], now is [0.95, 0.85, 0.95]", dict(moms=(.95, .85, .95)), {}),
    ("freeze was null, now is \"encoder\"", dict(freeze="encoder"), {}),
    ("precision was null, now is \"bf16\"", dict(precision="bf16"), {}),
    ("average was null, now is 0.9", dict(average=.9), {}),
], ids=lambda v: v.split()[0] if isinstance(v, str) else "")
def test_other_settings_are_named(stopped, what, kwargs, fit):
    kwargs = {k: v() if k == "dls" else v for k, v in kwargs.items()}
    with pytest.raises(InputError) as error: fit_for(make_learner(**kwargs), **{"epochs": 3, **fit}, out=stopped)
    assert what in str(error.value) and "Choose another folder" in str(error.value)


def other_pictures():
    dls = make_dls()
    dls.train_ds.pixels = 255 - dls.train_ds.pixels
    return dls


def test_a_budget_of_minutes_is_written_down_once(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "fast_plan", lambda *args: dict(precision=None, compile=False, told=""))
    monkeypatch.setattr(train, "seconds_per_epoch", lambda learn: 20.)
    stop = KillAt(2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): fit_for(make_learner(cbs=stop), minutes=1, out=tmp_path)
    monkeypatch.setattr(train, "seconds_per_epoch", lambda learn: 1.)
    assert json.loads((tmp_path / "training.json").read_text())["epochs"] == 3
    assert fit_for(make_learner(), minutes=1, out=tmp_path)["epochs"] == 3
    assert fit_for(make_learner(), epochs=3, out=tmp_path)["epochs"] == 3  # what was written down says the same
    with pytest.raises(InputError, match="minutes was 1, now is 2"): fit_for(make_learner(), minutes=2, out=tmp_path)
    with pytest.raises(InputError, match="epochs was 3, now is 5"): fit_for(make_learner(), epochs=5, out=tmp_path)


def test_minutes_and_their_epochs_train_the_same(monkeypatch):
    "Timing an epoch draws batches, which must leave no trace"
    monkeypatch.setattr(train, "_epochs_in", lambda minutes, learn, start: train.seconds_per_epoch(learn, steps=2) and 2)
    a, b = make_learner(precision=None), make_learner(precision=None)
    fit_for(a, minutes=1)
    fit_for(b, epochs=2)
    assert same(weights_of(a), weights_of(b))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "out", "/proc/nothing/out"):
        with pytest.raises(InputError, match="cannot write to the folder"): fit_for(make_learner(), epochs=1, out=out)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.json").write_text("{")
    with pytest.raises(InputError, match="training.json cannot be read"): fit_for(make_learner(), epochs=1, out=tmp_path / "out")


def test_two_processes_in_one_folder(tmp_path):
    with train._run_folder(tmp_path), pytest.raises(InputError, match="another process is training in"):
        fit_for(make_learner(), epochs=1, out=tmp_path)


@pytest.mark.parametrize("kwargs, what", [(dict(), "either"), (dict(minutes=1, epochs=1), "either"), (dict(epochs=0), "0 epochs"),
                                          (dict(epochs=1.5), "1.5 epochs"), (dict(minutes=0), "minutes=0"), (dict(epochs=1, lr=0), "lr=0"),
                                          (dict(epochs=1, lr=float("nan")), "lr=nan"), (dict(epochs=1, patience=0), "patience=0")])
def test_impossible_plans(kwargs, what):
    with pytest.raises(InputError, match=what): fit_for(make_learner(), **kwargs)


# ---------------------------------------------------------------- layers

ENCODERS = {"resnet10t": {}, "convnext_atto": {}, "vit_tiny_patch16_224": dict(img_size=32), "tf_efficientnet_lite0": {},
            "swin_tiny_patch4_window7_224": {}}


@pytest.mark.parametrize("name", ENCODERS)
def test_layer_groups(name):
    model = GalaxyModel(timm.create_model(name, num_classes=0, **ENCODERS[name]), 2)
    groups, names = layer_groups(model), {id(p): k for k, p in model.named_parameters()}
    told = [[names[id(p)] for p in group] for group in groups]
    assert sorted(sum(told, [])) == sorted(names.values()) and len(groups) > 3
    assert told[-1] == ["head.1.weight", "head.1.bias"]
    first = next(model.encoder.parameters())
    assert any(p is first for p in groups[0])
    depth = {"resnet10t": "layer", "convnext_atto": "stages", "vit_tiny_patch16_224": "blocks", "tf_efficientnet_lite0": "blocks",
             "swin_tiny_patch4_window7_224": "layers"}[name]
    stages = [sorted({int(k.split(depth)[1].strip(".").split(".")[0]) for k in group if f".{depth}" in k and
                      k.split(depth)[1].strip(".").split(".")[0].isdigit()}) for group in told]
    flat = [s for group in stages for s in group]
    assert flat == sorted(flat), "deeper layers come later"


def test_rates_rise_towards_the_head():
    learn = make_learner("resnet10t", layer_decay=.5)
    fit_for(learn, epochs=1, lr=1e-3)
    rates = [h["lr"] for h in learn.opt.hypers]
    np.testing.assert_allclose(np.array(rates[:-1]) / rates[1:], .5)
    np.testing.assert_allclose(layer_rates(8., 4, .5), [1, 2, 4, 8])


def test_freeze_encoder_moves_the_head_alone():
    learn = make_learner("resnet10t", freeze="encoder")
    before = weights_of(learn)
    fit_for(learn, epochs=1)
    moved = {k for k, v in weights_of(learn).items() if not torch.equal(v, before[k])}
    assert moved == {"head.1.weight", "head.1.bias"}  # no running mean of a batch norm either


def test_freeze_some_groups():
    learn = make_learner("resnet10t", freeze=2)
    before, frozen = weights_of(learn), {id(p) for group in layer_groups(learn.model)[:2] for p in group}
    names = {k for k, p in learn.model.named_parameters() if id(p) in frozen}
    fit_for(learn, epochs=1)
    moved = {k for k, v in weights_of(learn).items() if not torch.equal(v, before[k])}
    assert not names & moved and "encoder.layer4.0.conv1.weight" in moved
    assert not {k for k in moved if "running" in k and k.rsplit(".", 1)[0] + ".weight" in names}
    for wrong in (6, -1, True, "head", 1.5):
        with pytest.raises(InputError, match="6 groups of layers"): make_learner("resnet10t", freeze=wrong)


# ---------------------------------------------------------------- levers

def test_bf16_learns_about_as_much():
    full, half = (fit_for(make_learner(precision=p), epochs=4)["history"] for p in (None, "bf16"))
    assert full.valid_loss.iloc[-1] < full.valid_loss.iloc[0]
    assert abs(half.valid_loss.iloc[-1] - full.valid_loss.iloc[-1]) < .05 * full.valid_loss.iloc[-1]
    assert not half.equals(full)


def test_precision_is_on_in_the_network_alone():
    seen = []
    learn = make_learner(precision="bf16")
    learn.model.head[-1].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    fit_for(learn, epochs=1)
    assert set(seen) == {torch.bfloat16} and learn.pred is None
    assert not torch.is_autocast_enabled("cpu")
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}
    for precision in ("fp16", "half"):
        with pytest.raises(InputError, match="bf16"): make_learner(precision=precision)


def test_an_interrupted_forward_pass_leaves_autocast_off():
    learn = make_learner(precision="bf16")
    def interrupt(module, x, y): raise KeyboardInterrupt
    learn.model.head.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt): fit_for(learn, epochs=1)
    assert not torch.is_autocast_enabled("cpu")


def test_average_is_what_it_says():
    steps = []

    class Watch(Callback):
        order = 65
        def after_step(self): steps.append(weights_of(self.learn))
    learn = make_learner(average=.5, cbs=Watch(), dls=make_dls(bs=16))
    fit_for(learn, epochs=1)
    average = {k: v.clone() for k, v in steps[0].items()}  # the first step fills it
    for n, weights in enumerate(steps[1:], 1):
        share = min(.5, 1 - (1 + n) ** (-2 / 3))
        for k, v in weights.items():
            average[k] = share * average[k] + (1 - share) * v if v.is_floating_point() else v
    for k, v in weights_of(learn).items(): torch.testing.assert_close(v, average[k], rtol=1e-5, atol=1e-7)
    assert not same(weights_of(learn), steps[-1])


def test_validation_sees_the_average_and_training_does_not():
    learn = make_learner(average=.9)
    history = fit_for(learn, epochs=2)["history"]
    with learn.no_logging(): value = learn.validate()[0]
    assert value == pytest.approx(history.valid_loss.min(), rel=1e-6)
    plain = fit_for(make_learner(), epochs=2)["history"]
    assert plain.train_loss.equals(history.train_loss) and not plain.valid_loss.equals(history.valid_loss)
    with pytest.raises(InputError, match="average=1"): make_learner(average=1)


@pytest.mark.parametrize("decay", [0, -.5, 1.5, float("nan")])
def test_a_senseless_decay_of_rates_is_refused(decay):
    with pytest.raises(InputError, match="layer_decay=.*a fraction in"): make_learner(layer_decay=decay)


def test_early_stopping_keeps_the_best_epoch():
    "Galaxies whose votes are noise: what is learned is not true of others, and validation gets worse"
    catalog, pixels = galaxies(48)
    for question in RINGS.questions: catalog[question.columns] = np.random.default_rng(0).multinomial(20, [.5] * 2, 48)
    index = pd.DataFrame(dict(id_str=catalog.id_str, hash="", reason=""))
    dls = galaxy_dls(catalog, PixelCache(pixels, View(32), index), schema=RINGS, bs=8, device="cpu")
    states = []

    class Watch(Callback):
        order = 54
        def after_validate(self): states.append(weights_of(self.learn))
    learn = make_learner(dls=dls, cbs=Watch())
    done = fit_for(learn, epochs=40, lr=1e-2, patience=3)
    losses = done["history"].valid_loss
    assert len(losses) < 40 and done["best_epoch"] == losses.idxmin() == len(losses) - 4
    assert same(weights_of(learn), states[done["best_epoch"]])


def test_early_stop_is_final(tmp_path, monkeypatch):
    monkeypatch.setattr(train.EpochLog, "waited_enough", property(lambda self: len(self.rows) >= 2))
    first = fit_for(make_learner(), epochs=5, out=tmp_path, patience=1)
    again = fit_for(make_learner(), epochs=5, out=tmp_path, patience=1)
    assert len(first["history"]) == len(again["history"]) == 2 and first["history"].equals(again["history"])


def test_questions_add_up_to_the_loss():
    history = fit_for(make_learner(dls=make_dls(schema=DR5)), epochs=2)["history"]
    parts = history[[f"{q.name}_loss" for q in DR5.questions]]
    np.testing.assert_allclose(parts.sum(axis=1), history.valid_loss, rtol=1e-5)
    assert list(history)[:3] == ["train_loss", "valid_loss", "fraction_error"]


class Poison(Callback):
    "A pixel that is not a number, from step `step` on"
    order = -20  # also before the batch of which this process dies

    def __init__(self, step):
        super().__init__()
        self.step = step
    def before_batch(self):
        if self.training and self.train_iter >= self.step: self.learn.xb = (self.xb[0] * float("nan"),)


@pytest.mark.parametrize("every", [None, 1000], ids=["each step", "seldom"])
@pytest.mark.parametrize("step", [1, 5])
def test_nan_stops_with_sound_weights(tmp_path, capsys, monkeypatch, step, every):
    "Also where the loss is read once in many steps, as on a GPU: before validation and before each checkpoint it is"
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", 1e9)
    learn = make_learner(cbs=Poison(step))
    learn.stop_on_na_n.every = every
    done = fit_for(learn, epochs=3, out=tmp_path)
    assert "the loss was nan" in done["stopped"] and "Training stopped" in capsys.readouterr().out
    assert all(v.isfinite().all() for v in weights_of(learn).values())
    assert len(done["history"]) == (0 if step == 1 else 1)
    if step == 5: assert same(load_file(tmp_path / "best.safetensors"), weights_of(learn))
    for file in train._checkpoints(tmp_path / "checkpoints"):
        assert all(v.isfinite().all() for k, v in read_checkpoint(file)[0].items() if v.is_floating_point())


@pytest.mark.parametrize("seldom", [False, True])
def test_nan_without_checkpoints_between(capsys, seldom):
    "No checkpoint looks in between: the end of the epoch does, before validation"
    learn = make_learner(cbs=Poison(4))
    if seldom: learn.stop_on_na_n.every = 1000
    validated = []

    class Watch(Callback):
        def before_validate(self): validated.append(self.epoch)
    learn.add_cb(Watch())
    done = fit_for(learn, epochs=3)
    assert "the loss was nan" in done["stopped"] and validated == [0] and len(done["history"]) == 1
    assert all(v.isfinite().all() for v in weights_of(learn).values())


def test_the_loss_is_looked_at_as_seldom_as_asked(monkeypatch):
    looks = []
    monkeypatch.setattr(train.StopOnNaN, "check", lambda self: looks.append((self.epoch, self.training)))
    learn = make_learner(dls=make_dls(bs=4))  # 12 steps, 4 batches of validation
    learn.stop_on_na_n.every = 5
    fit_for(learn, epochs=1)
    assert looks == [(0, True)] * 3 + [(0, False)]


def test_weights_that_are_not_finite_are_never_written(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", 1e9)

    class Break(Callback):
        def after_step(self):
            if self.train_iter == 1: self.model.head[-1].bias.data[0] = float("inf")
    fit_for(make_learner(cbs=Break()), epochs=2, out=tmp_path)
    assert places(tmp_path) == [(0, 1)]


def test_losses_and_metrics_are_those_of_fastai():
    "Kept where the network is, and the same numbers"
    ours, theirs = make_learner(), make_learner()
    theirs.recorder.loss, theirs.recorder.smooth_loss = AvgLoss(), AvgSmoothLoss()
    error = theirs.metrics[0]
    def fraction_error(output, votes): return error(output, votes)   # of all galaxies at once
    theirs.metrics = [AccumMetric(fraction_error, flatten=False)]
    a, b = (fit_for(learn, epochs=2)["history"] for learn in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_fraction_error_does_not_depend_on_batches():
    error, rng = train.FractionError(RINGS), np.random.default_rng(0)
    votes = torch.tensor(rng.integers(0, 6, (64, len(RINGS.columns))), dtype=torch.float32)   # some were asked too seldom
    output, whole = torch.randn(64, len(RINGS.columns)), None
    for bs in (64, 16, 3, 1):
        error.reset()
        for rows in torch.arange(64).split(bs): error.accumulate(SimpleNamespace(pred=output[rows], yb=(votes[rows],)))
        whole = error(output, votes) if whole is None else whole
        torch.testing.assert_close(error.value, whole)
    assert error(output, 0 * votes).isnan()


def test_weights_of_galaxies_that_few_were_asked_about(tmp_path):
    catalog, pixels = galaxies(24)
    catalog[list(RINGS.columns)] = (catalog[list(RINGS.columns)] > 10) * 2
    index = pd.DataFrame(dict(id_str=catalog.id_str, hash="", reason=""))
    made = train_votes(catalog, PixelCache(pixels, View(32), index), tmp_path, RINGS, View(32), "test_resnet", epochs=1, device="cpu", progress=False)
    def refuse(name): raise AssertionError(name)
    assert "valid_loss" in json.loads((tmp_path / "weights" / "gz.json").read_text(), parse_constant=refuse)["metrics"]
    assert "fraction_error" not in made.info["metrics"]


# ---------------------------------------------------------------- optimiser

def test_fused_adam_is_adam():
    "Same losses as fastai's Adam over a whole cycle, with momenta that move and biases that do not decay"
    learners = make_learner(precision=None, layer_decay=.7), make_learner(precision=None, layer_decay=.7)
    learners[1].opt_func = Adam
    a, b = (fit_for(learn, epochs=3)["history"] for learn in learners)
    np.testing.assert_allclose(a.train_loss, b.train_loss, rtol=1e-4)
    np.testing.assert_allclose(a.valid_loss, b.valid_loss, rtol=1e-3)


def test_fused_adam_step_by_step():
    torch.manual_seed(0)
    params = [torch.randn(5, 3), torch.randn(3), torch.randn(4), torch.randn(2)]
    sets = [[p.clone().requires_grad_() for p in params] for _ in range(2)]
    opts = [make(([own[0], own[1]], own[2:]), lr=.1) for make, own in zip((Adam, FusedAdam), sets)]
    for opt, own in zip(opts, sets): opt.state[own[1]]["do_wd"] = False
    for i in range(6):
        grads = [torch.randn_like(p) for p in params]
        for opt, own in zip(opts, sets):
            opt.set_hypers(lr=[.1 / (i + 1), .05], mom=.95 - .02 * i, wd=.3)
            for p, g in zip(own[:3 + (i > 2)], grads): p.grad = g.clone()  # the last one gets its first gradient late
            opt.step()
            opt.zero_grad()
            assert all(p.grad is None or not p.grad.any() for p in own)
    for a, b in zip(*sets): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- the fastest way

def network(): return GalaxyModel(create_encoder("test_resnet"), 2)


@pytest.fixture
def timed(monkeypatch):
    "Trials that take no time, and say what they are told to"
    calls, says = [], dict(eager=dict(float32=1., bf16=.5), compiled={"compiling": 100., "compiled bf16": .25})
    monkeypatch.setattr(train, "_trial", lambda *args: calls.append("eager") or dict(says["eager"]))
    monkeypatch.setattr(train, "_trial_compiled", lambda *args: calls.append("compiled") or dict(says["compiled"]))
    return calls, says


def test_plan_measures_once(timed):
    calls, _ = timed
    first, second = (fast_plan(network(), 32, 8) for _ in range(2))
    assert calls == ["eager"] and "measured here" in first["told"] and "found earlier" in second["told"]
    assert first["precision"] == second["precision"] == "bf16" and first["rates"] == dict(float32=8., bf16=16.)
    fast_plan(network(), 64, 8)
    fast_plan(network(), 32, 16)
    fast_plan(network(), 32, 8, again=True)
    assert calls == ["eager"] * 4


@pytest.mark.parametrize("broken", ["", "{", "[1]", '{"KEY": 3}', '{"KEY": {"bf16": 1}}', '{"KEY": {"float32": "x"}}',
                                    '{"KEY": {"float32": -1}}', '{"KEY": {"float32": NaN, "bf16": 1}}', b"\xff\xfe\x00"])
def test_plan_ignores_a_broken_cache(timed, broken):
    calls, _ = timed
    fast_plan(network(), 32, 8)
    file = note_file("training_speed")
    key, = json.loads(file.read_text())
    file.write_bytes(broken if isinstance(broken, bytes) else broken.replace("KEY", key).encode())
    assert fast_plan(network(), 32, 8)["precision"] == "bf16" and calls == ["eager"] * 2
    assert json.loads(file.read_text()) == {key: dict(float32=1., bf16=.5)}


def test_plan_without_a_cache_folder(timed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fast_plan(network(), 32, 8)["precision"] == "bf16"


@pytest.mark.parametrize("half, precision", [(.5, "bf16"), (.95, None), (20., None)])
def test_plan_takes_half_the_digits_only_where_they_pay(timed, half, precision):
    timed[1]["eager"]["bf16"] = half
    assert fast_plan(network(), 32, 8)["precision"] == precision


def test_plan_compiles_only_where_that_repays(timed):
    calls, says = timed
    assert not fast_plan(network(), 32, 8, steps=1000)["compile"] and calls == ["eager"]  # 500 s: not even tried
    assert fast_plan(network(), 32, 8, seconds=3600)["compile"] and calls == ["eager", "compiled"]
    assert fast_plan(network(), 32, 8, steps=2000)["compile"] and calls == ["eager", "compiled"]  # known by now
    assert not fast_plan(network(), 32, 8, steps=399)["compile"]  # 100 s of compiling against 399 * .25
    says["compiled"] = {"compiling": 100., "compiled bf16": .6}
    assert not fast_plan(network(), 64, 8, steps=100000)["compile"]
    says["compiled"] = {"why": "there is no C++ compiler (g++)"}
    plan = fast_plan(network(), 128, 8, steps=100000)
    assert not plan["compile"] and "not compiled: there is no C++ compiler" in plan["told"]


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in train._trial_compiled(network(), torch.rand(2, 3, 32, 32), "float32")["why"]


def test_plan_leaves_the_network_as_it_was():
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = fast_plan(model, 32, 4)
    assert same(before, model.state_dict()) and all(p.grad is None for p in model.parameters())
    assert set(plan["rates"]) == {"float32", "bf16"} and min(plan["rates"].values()) > 0


def test_auto_precision(timed, monkeypatch, tmp_path):
    calls, _ = timed
    short = fit_for(make_learner(), epochs=2)
    assert short["precision"] is None and not calls
    monkeypatch.setattr(train, "_SHORT", 3)
    first = make_learner()
    assert fit_for(first, epochs=2, out=tmp_path)["precision"] == "bf16" and calls == ["eager"]
    assert json.loads((tmp_path / "training.json").read_text())["precision"] == "bf16"
    for asked in (None, "bf16"): assert fit_for(make_learner(precision=asked), epochs=2)["precision"] == asked
    assert calls == ["eager"]


def test_a_run_keeps_the_precision_it_began_with(timed, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "_SHORT", 3)
    straight = make_learner(precision="bf16")
    fit_for(straight, epochs=3)
    with pytest.raises(KeyboardInterrupt): fit_for(make_learner(cbs=KillAt(4, signal.SIGINT)), epochs=3, out=tmp_path)
    monkeypatch.setattr(train, "fast_plan", None)  # another machine would say something else; it is not asked
    again = make_learner()
    fit_for(again, epochs=3, out=tmp_path)
    assert same(weights_of(again), weights_of(straight))
    with pytest.raises(InputError, match="precision was \"bf16\", now is null"):
        fit_for(make_learner(precision=None), epochs=3, out=tmp_path)


def test_compiled_training(timed, monkeypatch, tmp_path):
    "A compiler that gives back what it got: training goes through it, validation does not, and nothing of it stays"
    passes = []

    def compiler(forward, dynamic):
        def compiled(x):
            passes.append(torch.is_grad_enabled())
            return forward(x)
        return compiled
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(train, "fast_plan", lambda *args: dict(precision=None, compile=True, told="compiled"))
    monkeypatch.setattr(train, "_SHORT", 3)
    straight, learn = make_learner(precision=None), make_learner()
    fit_for(straight, epochs=2)
    fit_for(learn, epochs=2, out=tmp_path)
    assert passes == [True] * 6 and "forward" not in vars(learn.model.encoder)
    assert same(weights_of(learn), weights_of(straight))
    assert json.loads((tmp_path / "training.json").read_text())["compile"] is True
    stopped = make_learner(cbs=KillAt(2, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt): fit_for(stopped, epochs=2, out=tmp_path / "again")
    assert "forward" not in vars(stopped.model.encoder)
    monkeypatch.setattr(train, "fast_plan", None)
    passes.clear()
    again = make_learner()
    fit_for(again, epochs=2, out=tmp_path / "again")
    assert passes == [True] * 4 and same(weights_of(again), weights_of(straight))


class Sides(Callback):
    "Sides of the pictures that the network sees"
    order = 90
    def __init__(self):
        super().__init__()
        self.seen = []
    def before_batch(self): self.seen.append((self.epoch, self.training, self.xb[0].shape[-1]))


def test_pictures_grow_and_validation_is_at_full_size():
    sides = Sides()
    learn = make_learner(dls=big_dls(), cbs=sides)
    fit_for(learn, epochs=4, progressive=.5)
    assert dict.fromkeys(sides.seen) == dict.fromkeys([(0, True, 32), (0, False, 64), (1, True, 48), (1, False, 64), (2, True, 48),
                                                       (2, False, 64), (3, True, 64), (3, False, 64)])
    assert not [f for f in learn.dls.train.after_batch.fs if isinstance(f, Shrink)]
    sides.seen.clear()
    fit_for(learn, epochs=1)
    assert {side for *_, side in sides.seen} == {64}


def big_dls():
    catalog, pixels = galaxies(64)
    index = pd.DataFrame(dict(id_str=catalog.id_str, hash="", reason=""))
    large = torch.nn.functional.interpolate(pixels, size=64, mode="bilinear")
    return galaxy_dls(catalog, PixelCache(large, View(64), index), schema=RINGS, bs=16, device="cpu")


@pytest.mark.parametrize("step", [2, 5, 8])
def test_growing_pictures_go_on_at_the_right_size(tmp_path, monkeypatch, step):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", 1e9)
    straight, stop = make_learner(dls=big_dls()), KillAt(step, signal.SIGINT)
    history = fit_for(straight, epochs=3, progressive=.5)["history"]
    with pytest.raises(KeyboardInterrupt):
        fit_for(make_learner(dls=big_dls(), cbs=stop), epochs=3, progressive=.5, out=tmp_path)
    again = make_learner(dls=big_dls())
    assert fit_for(again, epochs=3, progressive=.5, out=tmp_path)["history"].equals(history)
    assert same(weights_of(again), weights_of(straight))
    with pytest.raises(InputError, match="progressive was 0.5, now is null"):
        fit_for(make_learner(dls=big_dls()), epochs=3, out=tmp_path)


def test_training_sides():
    for size in (64, 96, 100, 224):
        sides = [train.training_side(epoch, 20, size, .6) for epoch in range(20)]
        assert sides == sorted(sides) and sides[15:] == [size] * 5 and min(sides) >= .5 * size
        assert all(side % 16 == 0 for side in sides if side < size)
    assert [train.training_side(epoch, 1, 64, .5) for epoch in range(1)] == [32]
    assert {train.training_side(epoch, 9, 64, None) for epoch in range(9)} == {64}


def test_growing_pictures_that_cannot_be():
    for wrong in (0, 1, 2., -1, float("nan")):
        with pytest.raises(InputError, match="progressive="): fit_for(make_learner(), epochs=1, progressive=wrong)
    learn = make_learner(dls=big_dls(), model=GalaxyModel(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64), 2))
    with pytest.raises(InputError, match="pictures of 64 px only"): fit_for(learn, epochs=1, progressive=.5)


def test_small_pictures_buy_epochs(monkeypatch):
    monkeypatch.setattr(train, "seconds_per_epoch", lambda learn: 10.)
    learn = make_learner(dls=big_dls())
    assert train._epochs_in(1, learn) == 6
    epochs = train._epochs_in(1, learn, .5)
    cost = [sum(10 * (train.training_side(e, n, 64, .5) / 64) ** 2 for e in range(n)) for n in (epochs, epochs + 1)]
    assert cost[0] <= 60 < cost[1] and epochs > 6


def test_greyscale_trains():
    history = fit_for(make_learner(dls=make_dls(view=View(32, greyscale=True))), epochs=2)["history"]
    assert history.valid_loss.iloc[-1] < history.valid_loss.iloc[0]


# ---------------------------------------------------------------- campaigns

def test_the_campaign_that_did_not_ask_gets_no_gradient():
    schema = get_schema("dr5+dr8")
    model = GalaxyModel(create_encoder("test_resnet"), len(schema.columns))
    votes = torch.zeros(6, len(schema.columns))
    of_dr5 = torch.tensor([column.split("_")[0].endswith("-dr5") for column in schema.columns])
    votes[:, of_dr5] = torch.randint(1, 20, (6, int(of_dr5.sum())), generator=torch.Generator().manual_seed(0)).float()
    DirichletMultinomialLoss(schema)(model(torch.randn(6, 3, 32, 32)), votes).backward()
    head = model.head[-1]
    assert (head.weight.grad[~of_dr5] == 0).all() and (head.bias.grad[~of_dr5] == 0).all()
    assert (head.bias.grad[of_dr5] != 0).all() and any((p.grad != 0).any() for p in model.encoder.parameters())


# ---------------------------------------------------------------- weights and whole runs

@pytest.fixture(scope="module")
def survey():
    catalog, pixels = galaxies(40)
    return catalog, ArrayImages(catalog.id_str, pixels)


def whole(survey, out, **kwargs):
    return train_votes(*survey, out, **{**dict(schema="rings", view=View(32), encoder="test_resnet", epochs=2, bs=8, device="cpu",
                                               progress=False), **kwargs})


def test_train_votes_from_table_to_weights(survey, tmp_path, monkeypatch):
    weights = whole(survey, tmp_path, about="Pictures: CC BY 4.0.")
    assert weights.schema.name == "rings" and weights.view == View(32) and weights.info["metrics"]["lr"] == 2e-3
    assert "CC BY 4.0" in (tmp_path / "weights" / "README.md").read_text()
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2
    monkeypatch.setattr(train, "save_learner", None)  # nothing is left to do
    assert whole(survey, tmp_path).hash == weights.hash
    with pytest.raises(InputError, match="epochs was 2, now is 3"): whole(survey, tmp_path, epochs=3)


@pytest.mark.parametrize("by", ["file", "link", "mine.txt", "gz.json", "weights", "gan"])
def test_weights_of_others_are_not_touched(survey, tmp_path, by):
    folder = tmp_path / "weights"
    if by == "file": folder.write_text("mine")
    elif by == "link": folder.symlink_to("elsewhere")
    elif by == "weights": save_weights(network(), folder, View(32), RINGS)
    elif by == "gan": save_gan(GalaxyGan(32, .125, 8), folder, View(32))
    else:
        folder.mkdir()
        (folder / by).write_text("{}")
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    with pytest.raises(InputError, match=f"{folder} (holds|is a link or).*give another out"): whole(survey, tmp_path)
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before
    if by in ("weights", "gan"): return
    with pytest.raises(InputError, match="give another out"): save_weights(network(), folder, View(32), RINGS)


def test_weights_that_cannot_take_their_place_leave_the_old(tmp_path, monkeypatch):
    folder = save_weights(network(), tmp_path / "w", View(32), RINGS)
    old, rename = load_weights(folder).hash, type(folder).rename
    def refused(self, target):
        if self.name.endswith(".writing"): raise OSError(5, "Input/output error")
        return rename(self, target)
    monkeypatch.setattr(type(folder), "rename", refused)
    with pytest.raises(InputError, match="cannot be written .*Input/output error"): save_weights(network(), folder, View(32), RINGS)
    assert load_weights(folder).hash == old and [p.name for p in tmp_path.iterdir()] == ["w"]
    monkeypatch.undo()
    assert load_weights(save_weights(network(), folder, View(32), RINGS)).hash != old and [p.name for p in tmp_path.iterdir()] == ["w"]


def test_pickled_encoders_of_timm_are_not_read(tmp_path):
    encoder = create_encoder("test_resnet")
    timm.models.save_for_hf(encoder, tmp_path, safe_serialization=True)
    assert create_encoder(str(tmp_path)).num_features == encoder.num_features
    (tmp_path / "model.safetensors").unlink()
    torch.save(encoder.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="no model.safetensors. Pickled weights"): create_encoder(str(tmp_path))


def test_weights_of_another_run_are_not_taken_for_those_of_this(survey, tmp_path):
    first = whole(survey, tmp_path / "a")
    assert note_temperature(tmp_path / "a" / "weights", [.5]).hash == first.hash
    assert whole(survey, tmp_path / "a").temperature == [.5]
    shutil.copytree(tmp_path / "a" / "weights", tmp_path / "b" / "weights")
    with pytest.raises(InputError, match="b/weights holds an encoder"): whole(survey, tmp_path / "b", epochs=3)
    assert not (tmp_path / "b" / "training.json").exists()
    save_weights(network(), tmp_path / "a" / "weights", View(32), RINGS)
    with pytest.raises(InputError, match="a/weights holds an encoder"): whole(survey, tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "weights")
    assert whole(survey, tmp_path / "a").hash == first.hash


@pytest.mark.parametrize("asked", [dict(seed=-1), dict(seed=2**32), dict(epochs=None, minutes=float("inf")), dict(epochs=None, minutes=float("nan")),
                                   dict(epochs=float("nan")), dict(lr=float("inf"))])
def test_numbers_that_no_training_can_have(survey, tmp_path, asked):
    with pytest.raises(InputError, match="a whole number from|a number above 0"): whole(survey, tmp_path, **asked)
    assert not (tmp_path / "weights").exists()


def test_train_votes_goes_on(survey, tmp_path, monkeypatch):
    straight = whole(survey, tmp_path / "a")
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", 1e9)
    with pytest.raises(KeyboardInterrupt): whole(survey, tmp_path / "b", cbs=KillAt(3, signal.SIGINT))
    assert not (tmp_path / "b" / "weights").exists()
    assert same(whole(survey, tmp_path / "b").model.state_dict(), straight.model.state_dict())


def test_experienced_encoders_learn_gently_at_their_own_view(survey, tmp_path):
    first = whole(survey, tmp_path / "first")
    second = whole(survey, tmp_path / "second", encoder=str(tmp_path / "first" / "weights"), view=None)
    assert second.info["metrics"]["lr"] == 5e-4 and second.view == first.view


def test_nan_makes_no_weights(survey, tmp_path):
    with pytest.raises(InputError, match="training stopped: the loss was nan"): whole(survey, tmp_path, cbs=Poison(2))
    assert not (tmp_path / "weights").exists()


def test_weights_to_go_on_with_must_fit(survey, tmp_path):
    weights = whole(survey, tmp_path)
    learn = make_learner(model=weights)
    assert same(weights_of(learn), weights.model.state_dict())
    with pytest.raises(InputError, match="'rings'.*'dr5'"): make_learner(model=weights, dls=make_dls(schema=DR5))
    with pytest.raises(InputError, match="trained on View"): make_learner(model=weights, dls=make_dls(view=View(32, greyscale=True)))
    with pytest.raises(InputError, match="gives 7 numbers"): make_learner(model=GalaxyModel(create_encoder("test_resnet"), 7))
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(InputError, match="Pickled weights"): make_learner(str(tmp_path / "net.pkl"))
    with pytest.raises(InputError, match="no encoder is called"): make_learner("resnet10")


@pytest.mark.parametrize("file", ["model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("damage, said", [("missing", "is missing"), ("extra", "is unknown"), ("shape", "is \\("), ("nan", "not finite")])
def test_tensors_that_do_not_fit(tmp_path, file, damage, said):
    "The checksum is right, what was saved is not"
    folder = save_weights(network(), tmp_path / "w", View(32), RINGS)
    state = load_file(folder / file)
    name = next(k for k in state if k.endswith("weight"))
    if damage == "missing": state.pop(name)
    if damage == "extra": state["stranger"] = torch.zeros(2)
    if damage == "shape": state[name] = state[name][:1].clone()
    if damage == "nan": state[name].view(-1)[0] = float("nan")
    save_file(state, folder / file)
    info = json.loads((folder / "gz.json").read_text())
    info["sha256"][file] = sha256_file(folder / file)
    (folder / "gz.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=f"{file} does not fit the network.*{said}"): load_weights(folder)


@pytest.mark.parametrize("change, says", [(lambda i: {}, "lacks name, view"), (lambda i: [], "describes no weights"),
    (lambda i: None, "describes no weights"), (lambda i: {k: v for k, v in i.items() if k != "sha256"}, "lacks sha256"),
    (lambda i: {k: v for k, v in i.items() if k != "view"}, "lacks view"), (lambda i: {k: v for k, v in i.items() if k != "schema"}, "lacks schema"),
    (lambda i: i | dict(sha256=[]), "no sound folder"), (lambda i: i | dict(sha256={}), "lacks checksum of config.json"),
    (lambda i: i | dict(view=3), "no sound folder"), (lambda i: i | dict(outputs="x"), "no sound folder"), (lambda i: i | dict(dropout=7), "no sound folder")])
def test_descriptions_that_describe_nothing(tmp_path, change, says):
    folder = save_weights(network(), tmp_path / "w", View(32), RINGS)
    (folder / "gz.json").write_text(json.dumps(change(json.loads((folder / "gz.json").read_text()))))
    with pytest.raises(InputError, match=f"{folder}.*{says}"): load_weights(folder)
    if "lacks" in says or "describes" in says:
        with pytest.raises(InputError, match=f"{folder}.*{says}"): create_encoder(folder)


def test_an_encoder_that_timm_does_not_know(tmp_path):
    folder = save_weights(network(), tmp_path / "w", View(32), RINGS)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | dict(architecture="resnet9000")))
    info = json.loads((folder / "gz.json").read_text())
    info["sha256"]["config.json"] = sha256_file(folder / "config.json")
    (folder / "gz.json").write_text(json.dumps(info))
    for read in (load_weights, create_encoder):
        with pytest.raises(InputError, match=f"{folder}.*no encoder 'resnet9000'. Upgrade timm"): read(folder)


@pytest.mark.parametrize("read", [load_weights, create_encoder])
def test_folders_that_are_no_weights(tmp_path, read):
    folder = save_weights(network(), tmp_path / "run" / "weights", View(32), RINGS)
    with pytest.raises(InputError, match=f"no gz.json, but {folder} has: give that folder"): read(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no gz.json"): read(tmp_path / "empty")
    with pytest.raises(InputError, match="holds a GAN, not an encoder"): read(save_gan(GalaxyGan(32, .125, 8), tmp_path / "gan", View(32)))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match="model.safetensors is not the file that was saved"): read(folder)
    (folder / "gz.json").unlink()
    with pytest.raises(InputError, match=f"{folder}"): create_encoder(folder)   # timm's own format, cut short


def test_what_names_weights(tmp_path):
    assert is_weights("gz-sim-small") and is_weights(tmp_path) and is_weights(str(tmp_path))
    (tmp_path / "net.pkl").write_bytes(b"")
    for other in ("resnet10t", "no-such-name", tmp_path / "net.pkl"): assert not is_weights(other)


def test_what_is_no_vote(tmp_path):
    catalog, pixels = galaxies(40)
    index = pd.DataFrame(dict(id_str=catalog.id_str, hash="", reason=""))
    catalog["ring"] = np.arange(40) % 2
    dls = galaxy_dls(catalog, PixelCache(pixels, View(32), index), label="ring", device="cpu")
    with pytest.raises(InputError, match="a label, not votes"): galaxy_learner(dls)


# ---------------------------------------------------------------- dashboards

def test_tensorboard_gets_every_question(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    history = fit_for(make_learner(cbs=train.TensorBoardLog(tmp_path)), epochs=2)["history"]
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in history:
        np.testing.assert_allclose([e.value for e in events.Scalars(name)], history[name], rtol=1e-6)
    assert [e.step for e in events.Scalars("valid_loss")] == [3, 6]


@pytest.mark.parametrize("name, make", [("torch.utils.tensorboard", lambda: train.TensorBoardLog("x")),
                                        ("wandb", lambda: train.WandbLog("x"))])
def test_dashboards_name_their_extra(monkeypatch, name, make):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"gz_nbdev\[log\]"): make()


def test_wandb_gets_every_question(monkeypatch):
    class Run:
        rows = []
        def log(self, row, step): self.rows.append((step, row))

    class FakeWandb:
        @staticmethod
        def init(**settings):
            assert settings == dict(project="galaxies", mode="offline")
            return Run()
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb)
    history = fit_for(make_learner(cbs=train.WandbLog("galaxies", mode="offline")), epochs=2)["history"]
    assert [step for step, _ in Run.rows] == [3, 6]
    assert pd.DataFrame([row for _, row in Run.rows]).equals(history.reset_index(drop=True))
