"""learn2learn's modules, transforms and functions on modules, without a learner."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import metagan_fast.dropin.learn2learn as l2l
from learn2learn_cases import LR, Tied, images, loss_of, mlp
from support import assert_close, join

pytestmark = pytest.mark.usefixtures("float64_default")


def test_a_clone_is_a_copy() -> None:
    module = Tied()
    module.again = module.decode  # a submodule in two places
    module.register_buffer("running", torch.ones(2))
    module.register_buffer("learned", torch.ones(2).requires_grad_())
    clone = l2l.clone_module(module)
    assert type(clone) is Tied
    assert list(clone.state_dict()) == list(module.state_dict())
    assert clone.encode.weight is clone.decode.weight
    assert clone.decode is clone.again
    assert clone.running is module.running
    assert clone.learned is not module.learned
    for name, p in clone.named_parameters():
        assert p.grad_fn is not None
        assert p.data_ptr() != module.get_parameter(name).data_ptr()
    before = copy.deepcopy(module.state_dict())
    l2l.update_module(clone, [torch.ones_like(p) for p in clone.parameters()])
    assert clone.encode.weight is clone.decode.weight
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert l2l.clone_module(None) is None


def test_a_memo_ties_modules_that_share_parameters() -> None:
    first, second, memo = nn.Linear(2, 2), nn.Linear(2, 2), {}
    second.weight = first.weight
    clones = [l2l.clone_module(x, memo) for x in (first, second)]
    assert clones[0].weight is clones[1].weight
    assert clones[0].bias is not clones[1].bias


def test_a_clone_shares_the_running_statistics() -> None:
    module = nn.BatchNorm1d(4)
    l2l.MAML(module, lr=LR).clone()(images(8)[0])
    assert module.num_batches_tracked == 1
    assert not torch.equal(module.running_mean, torch.zeros(4))


def test_updates_are_added_with_their_graph() -> None:
    module = mlp()
    clone = l2l.clone_module(module)
    scale = torch.tensor(2.0, requires_grad=True)
    updates = [None, *(scale * torch.randn_like(p) for p in list(clone.parameters())[1:])]
    assert l2l.update_module(clone, updates) is clone
    for p, q, update in zip(module.parameters(), clone.parameters(), updates, strict=True):
        assert torch.equal(q, p if update is None else p + update)
    (d_scale,) = torch.autograd.grad(sum(q.sum() for q in clone.parameters()), scale)
    assert_close(d_scale, sum(u.sum() for u in updates[1:]).detach() / 2, "float64-rounding")


def test_updates_may_be_attributes() -> None:
    module = l2l.clone_module(nn.BatchNorm1d(3))
    weight, mean = module.weight, module.running_mean
    weight.update, mean.update = torch.ones(3), torch.full((3,), 2.0)
    l2l.maml_update(module, lr=LR)
    assert torch.equal(module.weight, weight + 1)
    assert torch.equal(module.running_mean, mean + 2)
    assert weight.update is None
    l2l.update_module(module)
    assert torch.equal(module.weight, weight + 1)


def test_a_wrong_number_of_updates_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    module = l2l.clone_module(nn.Linear(2, 2))
    weight = module.weight
    l2l.update_module(module, [torch.ones(2, 2)])
    assert torch.equal(module.weight, weight + 1)
    assert "expected one update a parameter, 2, got 1" in caplog.text


def test_meta_sgd_update_reads_attributes() -> None:
    module = nn.Linear(2, 1)
    module(torch.ones(1, 2)).sum().backward()
    weight, bias = module.weight, module.bias
    weight._lr, bias._lr = torch.full((1, 2), 2.0), torch.full((1,), 3.0)
    module = l2l.meta_sgd_update(l2l.utils.copy_structure(module))
    assert torch.equal(module.weight, weight - 2)
    assert torch.equal(module.bias, bias - 3)
    assert weight.grad is None


@pytest.mark.parametrize("keep", [False, True])
def test_detaching(keep: bool) -> None:
    module, data = mlp(), images(2, 5)
    clones = [l2l.clone_module(module), *(c.module for c in l2l.MAML(module, lr=LR).adapt_batch(loss_of, data))]
    for clone in clones:
        before = join(dict(clone.named_parameters())).detach()
        l2l.detach_module(clone, keep_requires_grad=keep)
        assert torch.equal(join(dict(clone.named_parameters())), before)
        assert all(p.is_leaf and p.requires_grad is keep for p in clone.parameters())
    l2l.detach_module(None)


def test_magic_box() -> None:
    x = torch.randn(3, requires_grad=True)
    assert torch.equal(l2l.magic_box(x), torch.ones(3))
    (first,) = torch.autograd.grad((l2l.magic_box(x.sin())).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_close(first, x.cos(), "float64-rounding")
    assert_close(second, x.cos() ** 2 - x.sin(), "float64-rounding")
    assert l2l.magic_box(2.5) == 2.5


def test_accuracy() -> None:
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 1.0], [0.0, 1.0]])
    assert l2l.utils.accuracy(scores, torch.tensor([1, 0, 0, 1])) == 0.75


def test_transforms() -> None:
    vector, matrix, kernel = torch.randn(3), torch.randn(3, 4), torch.randn(3, 4, 2, 5)
    gradient = torch.randn(3, 4, 2, 5)
    for x in (vector, matrix, kernel):  # identity at first
        assert torch.equal(l2l.optim.MetaCurvatureTransform(x, lr=2.0)(x), 2 * x)
    transform = l2l.optim.MetaCurvatureTransform(kernel)
    with torch.no_grad():
        for p in transform.parameters():
            p.copy_(torch.randn_like(p))
    rows = torch.kron(torch.kron(transform.mc_in, transform.mc_out.T.contiguous()), transform.mc_f)
    assert_close(transform(gradient).flatten(), rows @ gradient.flatten(), "float64-rounding")
    matrices = l2l.optim.MetaCurvatureTransform(matrix)
    with torch.no_grad():
        for p in matrices.parameters():
            p.copy_(torch.randn_like(p))
    assert_close(matrices(matrix), matrices.mc_in @ matrix @ matrices.mc_out, "float64-rounding")
    with pytest.raises(NotImplementedError, match=r"1, 2 or 4 dimensions, got shape \[2, 2, 2\]"):
        l2l.optim.MetaCurvatureTransform(torch.zeros(2, 2, 2))

    linear = nn.Linear(2, 2)
    choice = l2l.optim.TransformDictionary({linear: l2l.optim.ModuleTransform(nn.Linear)})
    assert choice(nn.Parameter(torch.zeros(1))) is None
    made = choice(linear.weight)
    assert_close(made(linear.weight), made.transform(linear.weight.flatten()).view(2, 2), "float64-rounding")
    with pytest.raises(ValueError, match="expected modules or parameters as keys, got str"):
        l2l.optim.TransformDictionary({"linear": lambda p: None})
    with pytest.raises(ValueError, match="to be a module or None, got int"):
        l2l.ParameterUpdate(linear.parameters(), lambda p: 1)


@pytest.mark.parametrize("psd", [False, True])
def test_kronecker_maps(psd: bool) -> None:
    """Matrices are multiplied from both sides; on column-major vectors that is a Kronecker product."""
    layer = l2l.nn.KroneckerLinear(2, 3, psd=psd)
    matrices = torch.randn(4, 2, 3)
    assert torch.equal(layer(matrices), matrices)  # identity at first
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    left, right = layer.left, layer.right
    if psd:
        left, right = left.T @ left, right.T @ right
    assert_close(layer(matrices), torch.stack([left @ x @ right + layer.bias for x in matrices]), "float64-rounding")
    columns = matrices[0].T.flatten()
    expected = torch.kron(right.T.contiguous(), left) @ columns + layer.bias.T.flatten()
    assert_close(layer(columns), expected, "float64-rounding")
    for wrong in (torch.zeros(5), torch.zeros(3, 2)):
        with pytest.raises(ValueError, match=r"expected a tensor \[\.\.\., 2, 3\] or \[6\]"):
            layer(wrong)


@pytest.mark.parametrize(("sizes", "factors"), [((3,), (3, 1)), ((3, 4), (3, 4)), ((5, 4, 2, 3), (4, 6))])
def test_kronecker_transforms(sizes: tuple[int, ...], factors: tuple[int, int]) -> None:
    made = l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)(torch.zeros(sizes))
    gradient = torch.randn(sizes)
    assert torch.equal(made(gradient), gradient)
    left, right = made.transform.parameters()  # no bias
    assert (len(left), len(right)) == factors
    with torch.no_grad():
        left.copy_(torch.randn_like(left))
    expected = left.T @ left @ gradient.reshape(-1, *factors)
    assert_close(made(gradient), expected.reshape(sizes), "float64-rounding")
    with pytest.raises(NotImplementedError, match=r"1, 2 or 4 dimensions, got shape \[2, 2, 2\]"):
        l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)(torch.zeros(2, 2, 2))


def test_learnable_optimizer_has_hypergradients() -> None:
    """The loss after one step at a learned rate has the derivative -lr <gradient after, gradient before>."""
    module, data = nn.Linear(4, 3), images(5)
    optimizer = l2l.optim.LearnableOptimizer(module, lambda p: l2l.nn.Scale(alpha=2.0), lr=LR)
    loss_of(module, data).backward()
    before = [p.grad.clone() for p in module.parameters()]
    start = [p.detach().clone() for p in module.parameters()]
    optimizer.step()
    for p, q, g in zip(module.parameters(), start, before, strict=True):
        assert_close(p, q - 2 * LR * g, "float64-rounding")
    optimizer.zero_grad()
    loss_of(module, data).backward()
    for scale, p, g in zip(optimizer.parameters(), module.parameters(), before, strict=True):
        assert_close(scale.grad, -LR * (p.grad * g).sum().reshape(1), "float64-rounding")


def test_steps_of_no_leaves_neither_warn_nor_touch_the_filters_of_other_threads() -> None:
    """A separate process has the warning filters of PyTorch and Python."""
    code = """
import warnings, torch
warnings.simplefilter("error")
import metagan_fast.dropin.learn2learn as l2l
warnings.catch_warnings = None
module = l2l.clone_module(torch.nn.Linear(2, 1))
l2l.meta_sgd_update(module)
optimizer = l2l.optim.LearnableOptimizer(torch.nn.Linear(2, 1), lambda p: l2l.nn.Scale())
clone = optimizer.info["model"] = l2l.clone_module(optimizer.info["model"])
optimizer.step(), optimizer.zero_grad()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_small_modules() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(l2l.nn.Flatten()(x), x.view(2, 12))
    assert torch.equal(l2l.nn.Lambda(lambda x: x + 1)(x), x + 1)
    assert torch.equal(l2l.nn.Scale(4, alpha=3.0)(x), 3 * x)
    module = l2l.nn.freeze(mlp())
    assert not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in l2l.nn.unfreeze(module).parameters())
