"The loss and its gradient, held against SciPy and fifty digits of mpmath over the whole range it will ever see"
import itertools

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from scipy.special import psi
from scipy.stats import dirichlet_multinomial

from gz_nbdev.losses import (DirichletMultinomialLoss, expected_fractions, question_membership, question_nll, to_concentrations,
                             votes_nll, zoobot_concentrations)
from gz_nbdev.schema import Schema, get_schema

CONCENTRATIONS = [.01, .1, 1., 7.5, 100., 1000.]


def exact_gradient(k, a):
    "In closed form, float64"
    n, total = k.sum(-1, keepdims=True), a.sum(-1, keepdims=True)
    return psi(n + total) - psi(total) - psi(k + a) + psi(a)


def ours(k, a, nll=question_nll):
    "Loss and gradient as arrays"
    a = a.clone().requires_grad_()
    loss = nll(k, a)
    loss.sum().backward()
    return loss.detach(), a.grad


def counts(answers):
    "Nobody, one, everybody for one answer, ties, few, many"
    one_takes_all = [[n if i == taker else 0 for i in range(answers)] for n in (1, 7, 40, 1000) for taker in (0, answers - 1)]
    return [[0] * answers, *one_takes_all, [1] * answers, [500] * answers, [1000] * answers, list(range(answers)),
            [1000] + [1] * (answers - 1)]


@pytest.fixture(scope="module", params=range(2, 8), ids="{} answers".format)
def grid(request):
    "Every corner of concentrations for up to three answers, a random mix of the range for more; every kind of count"
    answers = request.param
    mixes = list(itertools.product(CONCENTRATIONS, repeat=answers)) if answers < 4 else list(
        10 ** np.random.default_rng(answers).uniform(-2, 3, (150, answers))) + [[c] * answers for c in CONCENTRATIONS]
    k, a = np.array(counts(answers), float), np.array(mixes)
    return np.repeat(k, len(a), 0), np.tile(a, (len(k), 1))


def test_loss_is_scipys(grid):
    k, a = grid
    judge = -dirichlet_multinomial.logpmf(k.astype(int), a, k.sum(-1).astype(int))
    loss, _ = ours(torch.tensor(k), torch.tensor(a))
    np.testing.assert_allclose(loss, judge, rtol=1e-6, atol=1e-9)
    in_single = torch.tensor(a).float()
    loss, _ = ours(torch.tensor(k).float(), in_single)
    judge = -dirichlet_multinomial.logpmf(k.astype(int), in_single.double().numpy(), k.sum(-1).astype(int))
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss, judge, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=str)
def test_gradient_is_the_closed_one(grid, dtype, rtol):
    k, a = grid
    a = torch.tensor(a).to(dtype)
    _, gradient = ours(torch.tensor(k).to(dtype), a)
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient.double(), exact_gradient(k, a.double().numpy()), rtol=rtol, atol=1e-12)


def test_loss_and_gradient_to_fifty_digits():
    "SciPy counts in float64 too: mpmath does not"
    mp.dps = 50
    def digits(k, a):
        n, total = mpf(sum(k)), sum(map(mpf, a))
        log = mp.loggamma(n + 1) + mp.loggamma(total) - mp.loggamma(n + total)
        log += sum(mp.loggamma(k_ + mpf(a_)) - mp.loggamma(mpf(a_)) - mp.loggamma(mpf(k_) + 1) for k_, a_ in zip(k, a))
        slope = [mp.digamma(n + total) - mp.digamma(total) - mp.digamma(k_ + mpf(a_)) + mp.digamma(mpf(a_)) for k_, a_ in zip(k, a)]
        return float(-log), [float(s) for s in slope]
    for k in ([1000, 0, 0], [0, 1000, 0], [1, 0, 0], [333, 333, 334], [1000, 1000, 1000], [9, 30, 1]):
        for a in ([.01, .01, .01], [.01, 1000., 1.], [1000., .01, .01], [1000., 1000., 1000.], [4., 11., 1.]):
            loss, gradient = ours(torch.tensor(k), torch.tensor(a, dtype=torch.float64))
            judge, slope = digits(k, a)
            assert loss.item() == pytest.approx(judge, rel=1e-6)
            assert gradient.tolist() == pytest.approx(slope, rel=1e-6)


def test_gradient_is_that_of_finite_differences():
    schema = get_schema("dr5")
    loss = DirichletMultinomialLoss(schema)
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(4, 34, dtype=torch.float64, generator=generator).mul(4).requires_grad_()
    votes = torch.randint(0, 41, (4, 34), generator=generator)
    assert torch.autograd.gradcheck(lambda o: loss(o, votes), output, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["rings", "dr5", "hart16", "gz_desi"])
def test_tree_is_the_sum_of_its_questions(name):
    "Trees with questions unasked and with campaigns left out"
    schema, rng = get_schema(name), np.random.default_rng(0)
    a = 10 ** rng.uniform(-2, 3, (40, len(schema.columns)))
    k = rng.integers(0, 1001, a.shape)
    for q in schema.questions: k[rng.uniform(size=40) < .5, q.slice] = 0
    loss, gradient = ours(torch.tensor(k), torch.tensor(a), lambda k, a: votes_nll(k, a, question_membership(schema)))
    for i, q in enumerate(schema.questions):
        judge = -dirichlet_multinomial.logpmf(k[:, q.slice], a[:, q.slice], k[:, q.slice].sum(1))
        np.testing.assert_allclose(loss[:, i], judge, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(gradient[:, q.slice], exact_gradient(k[:, q.slice], a[:, q.slice]), rtol=1e-6, atol=1e-12)
        unasked = k[:, q.slice].sum(1) == 0
        assert unasked.any() and not loss[unasked, i].any() and not gradient[unasked, q.slice].any()


def test_other_campaigns_weigh_nothing():
    "A galaxy of dr5 in the tree of three campaigns costs what it costs in dr5 alone"
    desi, dr5 = get_schema("gz_desi"), get_schema("dr5")
    output = torch.randn(5, len(desi.columns), generator=torch.Generator().manual_seed(1))
    votes, where = torch.zeros(5, len(desi.columns)), [desi.columns.index(c) for c in dr5.columns]
    votes[:, where] = torch.randint(0, 30, (5, 34), generator=torch.Generator().manual_seed(2)).float()
    assert DirichletMultinomialLoss(desi)(output, votes).item() == pytest.approx(
        DirichletMultinomialLoss(dr5)(output[:, where], votes[:, where]).item(), rel=1e-6)


def test_reductions_add_up():
    schema = get_schema("dr5")
    output, votes = torch.randn(6, 34), torch.randint(0, 9, (6, 34))
    each = DirichletMultinomialLoss(schema, "none")(output, votes)
    assert each.shape == (6,)
    assert DirichletMultinomialLoss(schema, "sum")(output, votes).item() == pytest.approx(each.sum().item(), rel=1e-6)
    assert DirichletMultinomialLoss(schema)(output, votes).item() == pytest.approx(each.mean().item(), rel=1e-6)
    assert DirichletMultinomialLoss(schema).per_question(output, votes).sum(-1).tolist() == pytest.approx(each.tolist(), rel=1e-5)


# Half precision

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_half_precision_costs_only_its_rounding(dtype, autocast):
    "Against the same rounded output in float32, from concentrations of .001 to hundreds"
    schema = get_schema("dr5")
    loss, rng = DirichletMultinomialLoss(schema), np.random.default_rng(0)
    output = torch.tensor(rng.uniform(-20, 500, (50, 34)) * rng.choice([.02, 1], (50, 34))).to(dtype)
    votes = torch.tensor(rng.choice([0, 1, 20, 1000], (50, 34)))
    half, full = (output.detach().clone().to(x).requires_grad_() for x in (dtype, torch.float32))
    with torch.autocast("cpu", dtype, enabled=autocast): in_half = loss(half, votes)
    in_full = loss(full, votes)
    in_half.backward(), in_full.backward()
    assert in_half.dtype == torch.float32 and half.grad.isfinite().all()
    assert in_half.item() == pytest.approx(in_full.item(), rel=1e-6)
    step = torch.finfo(dtype)
    np.testing.assert_allclose(half.grad.double(), full.grad.double(), rtol=step.eps, atol=step.smallest_normal)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_coarse_concentrations_give_a_fine_loss(dtype):
    a = torch.tensor([4, 11, 1], dtype=dtype)
    loss = question_nll(torch.tensor([9, 30, 1]), a)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-dirichlet_multinomial.logpmf([9, 30, 1], [4, 11, 1], 40), rel=1e-6)


@pytest.mark.parametrize("head", [to_concentrations, zoobot_concentrations])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_any_output_gives_finite_loss_and_gradient(head, dtype):
    "However far out the network goes"
    schema = Schema.from_text("q: a, b, c", "one question")
    for far in (0, 30, 1000, 3e4):
        output = torch.tensor([[far, -far, 0.], [-far, -far, -far], [far, far, far]], dtype=dtype, requires_grad=True)
        loss = DirichletMultinomialLoss(schema, head=head)(output, torch.tensor([[0, 1000, 3]] * 3))
        loss.backward()
        assert loss.isfinite() and output.grad.isfinite().all()
        assert (head(output) > 0).all()


def test_fractions_sum_to_one_under_autocast():
    schema = get_schema("dr5")
    a = to_concentrations(torch.randn(20, 34, generator=torch.Generator().manual_seed(0)) * 20)
    with torch.autocast("cpu", torch.bfloat16): fractions = expected_fractions(a, question_membership(schema))
    assert fractions.dtype == torch.float32
    for q in schema.questions:
        assert fractions[:, q.slice].sum(-1).numpy() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(fractions[:, q.slice], a[:, q.slice] / a[:, q.slice].sum(-1, keepdims=True), rtol=1e-6)


# Heads

def test_zoobot_head():
    "1 + 100 sigmoid: from 1 to 101, never an expected fraction below 1 / (1 + 101 (k - 1))"
    assert zoobot_concentrations(torch.tensor([-100., 0., 100.])).tolist() == pytest.approx([1, 51, 101])
    schema = Schema.from_text("q: a, b, c, d", "one question")
    loss = DirichletMultinomialLoss(schema, head=zoobot_concentrations)
    assert loss.decodes(loss.activation(torch.tensor([[-1e3, 1e3, 1e3, 1e3]])))[0, 0].item() == pytest.approx(1 / 304)


def test_loss_moves_with_its_model_and_has_nothing_to_save():
    loss = DirichletMultinomialLoss(get_schema("dr5"))
    assert not loss.state_dict() and loss.membership.dtype == torch.float64


# What a user meets

def test_votes_and_concentrations_must_match():
    with pytest.raises(ValueError, match="3 answers were voted on, but there are 4"): question_nll(torch.ones(3), torch.ones(4))
    loss = DirichletMultinomialLoss(get_schema("dr5"))
    with pytest.raises(ValueError, match="30 columns of votes, 34 concentrations and a schema of 34 answers"):
        loss(torch.ones(2, 34), torch.ones(2, 30))
