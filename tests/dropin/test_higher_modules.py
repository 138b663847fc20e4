"""Functional modules and optimizers of the stand-in for `higher`: supported uses and refused ones."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from higher_cases import batches, flat, mse, network, original
from metagan_fast.dropin import higher as ours
from metagan_fast.dropin._flat_module import join, layout_of
from support import assert_close

SGD, ADAM = torch.optim.SGD, torch.optim.Adam


@pytest.fixture(scope="module")
def theirs() -> Any:
    return original()


def test_signatures_are_the_originals(theirs: Any) -> None:
    """Arguments have the original's names, kinds, order and defaults."""

    def arguments(function: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    names = ["innerloop_ctx", "monkeypatch", "get_diff_optim", "create_diff_optim", "register_optim"]
    assert not [name for name in names if arguments(getattr(ours, name)) != arguments(getattr(theirs, name))]


def test_params_callbacks_and_history(theirs: Any) -> None:
    """A loop may pass lists of parameters, with and without a functional module."""
    module = network().double()
    data = batches(3)
    results = {}

    def halve(grads: Any) -> list[Tensor]:
        return [g / 2 for g in grads]

    for library in (theirs, ours):
        fmodule = library.monkeypatch(copy.deepcopy(module), copy_initial_weights=False)
        opt = SGD(module.parameters(), lr=0.1, momentum=0.9)
        diffopt = library.get_diff_optim(opt, module.parameters(), grad_callback=halve)
        params = list(fmodule.parameters())
        params = diffopt.step(mse(fmodule, data[0], params=params), params=params)
        params = diffopt.step(
            mse(fmodule, data[1], params=params), params=params, grad_callback=lambda grads: [g * 3 for g in grads]
        )
        fmodule.fast_params = [fmodule.fast_params[0] + 1, *fmodule.fast_params[1:]]
        loss = mse(fmodule, data[2], params=params)
        assert len(fmodule._fast_params) == 5
        assert fmodule.fast_params is fmodule._fast_params[-1]
        assert [name for name, _ in fmodule.named_parameters()] == [name for name, _ in module.named_parameters()]
        assert torch.equal(fmodule[2](data[0][0]), fmodule[5](data[0][0]))
        assert fmodule[0].weight is fmodule.fast_params[0]
        results[library] = flat(params), flat(torch.autograd.grad(loss, list(fmodule.parameters(time=0))))
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert_close(actual, expected, "float64-parity")


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers(theirs: Any, kind: Any) -> None:
    module = kind(3, 4, num_layers=2).double()
    x = torch.randn(5, 2, 3).double()
    gradients = {}
    for library in (theirs, ours):
        with library.innerloop_ctx(module, SGD(module.parameters(), lr=0.5)) as (fmodule, diffopt):
            diffopt.step(fmodule(x)[0].square().sum())
            gradients[library] = flat(torch.autograd.grad(fmodule(x)[0].sum(), fmodule.init_fast_params))
    assert_close(gradients[ours], gradients[theirs], "float64-parity")


def test_assigned_parameters_are_an_update() -> None:
    module = network().double()
    fmodule = ours.monkeypatch(module)
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    fmodule[5].weight = weight * 1  # the layer that occurs twice
    assert [len(fmodule._fast_params), fmodule[2].weight is fmodule.fast_params[2]] == [2, True]
    expected = copy.deepcopy(module)
    with torch.no_grad():
        expected[2].weight.copy_(weight)
    batch = batches(1)[0]
    mse(expected, batch).backward()
    (gradient,) = torch.autograd.grad(mse(fmodule, batch), weight)
    assert_close(gradient, expected[2].weight.grad, "float64-rounding")


def test_created_optimizer_and_registered_type(theirs: Any) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    data = batches(2)
    results = {}
    for library in (theirs, ours):

        class SignDescent(library.optim.DifferentiableOptimizer):
            def _update(self, grouped_grads: Any, **kwargs: Any) -> None:
                for group, grads in zip(self.param_groups, grouped_grads, strict=True):
                    for i, g in enumerate(grads):
                        group["params"][i] = group["params"][i] - group["lr"] * g.sign()

        class Sign(SGD):
            pass

        library.register_optim(Sign, SignDescent)
        fmodule = library.monkeypatch(module)
        for diffopt in (
            library.create_diff_optim(ADAM, {"lr": 0.1, "eps": 1e-16}, fmodel=fmodule),
            library.create_diff_optim(SGD, {"lr": 0.1}, params=list(fmodule.parameters()), fmodel=fmodule),
            library.create_diff_optim(Sign, {"lr": 0.1}, fmodel=fmodule),
        ):
            diffopt.step(mse(fmodule, data[0]))
        results[library] = flat(fmodule.parameters())
    assert_close(results[ours], results[theirs], "float64-parity")


def test_learned_hyper_parameters_return_to_the_optimizer() -> None:
    module = nn.Linear(2, 2)
    opt = ADAM(module.parameters(), lr=0.1, betas=(0.8, 0.9))
    override = ours.optim.get_trainable_opt_params(opt)
    assert override["lr"][0].requires_grad
    assert "foreach" not in override
    with torch.no_grad():
        override["lr"][0].mul_(2)
        override["betas"][0][1].add_(0.05)
    ours.optim.apply_trainable_opt_params(opt, override)
    group = opt.param_groups[0]
    assert group["lr"] == pytest.approx(0.2)
    assert group["betas"] == pytest.approx((0.8, 0.95))
    assert group["amsgrad"] is False


def test_tracking_ends_the_graph() -> None:
    module = network().double()
    module[0].weight.requires_grad_(False)
    data = batches(2)
    opt = SGD(module.parameters(), lr=0.1)
    with ours.innerloop_ctx(module, opt, copy_initial_weights=False, track_higher_grads=False) as (fmodule, diffopt):
        for batch in data:
            loss = mse(fmodule, batch)
            diffopt.step(loss)
            with pytest.raises(RuntimeError, match="second time"):  # the step freed the graph, as it did not keep it
                loss.backward()
        with pytest.raises(ValueError, match="time=2"):
            fmodule.parameters(time=2)
        with pytest.raises(Exception, match="track_higher_grads=True"):
            _ = fmodule.init_fast_params
        mse(fmodule, data[0]).backward()
    assert all(p.grad is None for p in module.parameters())
    assert [p.grad is not None for p in fmodule.parameters()] == [p.requires_grad for p in module.parameters()]
    assert torch.equal(fmodule[0].weight, module[0].weight)


def test_steps_share_one_buffer() -> None:
    """Fast weights are views of one flat result and are gathered without a copy."""
    module = network()
    with ours.innerloop_ctx(module, SGD(module.parameters(), lr=0.1)) as (fmodule, diffopt):
        for _ in range(2):
            params = list(fmodule.parameters())
            layout = layout_of(tuple(p.shape for p in params))
            assert len({p.untyped_storage().data_ptr() for p in params}) == 1
            assert join(layout, params).data_ptr() == params[0].data_ptr()
            diffopt.step(fmodule(torch.randn(5, 4)).square().mean())


def test_mixed_dtypes_and_a_device(theirs: Any) -> None:
    module = nn.Sequential(nn.Linear(4, 4).double(), nn.Tanh())
    module.register_parameter("scale", nn.Parameter(torch.ones(4)))
    data = batches(1)[0][0]
    results = {}
    for library in (theirs, ours):
        opt = ADAM(module.parameters(), lr=0.1, eps=1e-12)
        with library.innerloop_ctx(module, opt, device=torch.device("cpu")) as (fmodule, diffopt):
            for _ in range(2):
                diffopt.step((fmodule(data) * fmodule.scale).square().sum())
            assert [p.dtype for p in fmodule.parameters()] == [p.dtype for p in module.parameters()]
            results[library] = [flat([p.double()]) for p in fmodule.parameters()]
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert_close(actual, expected, "float32-rounding")


def test_bad_use_is_refused() -> None:
    module = network()
    opt = SGD(module.parameters(), lr=0.1)
    fmodule = ours.monkeypatch(module)
    diffopt = ours.get_diff_optim(opt, module.parameters(), fmodel=fmodule)
    with pytest.raises(ValueError, match="functional already"):
        ours.monkeypatch(fmodule)
    with pytest.raises(ValueError, match="no fast weights"):
        ours.make_functional(module)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="not among the reference parameters"):
        ours.get_diff_optim(opt, network().parameters())
    with pytest.raises(ValueError, match="LBFGS have no differentiable counterpart"):
        ours.get_diff_optim(torch.optim.LBFGS(module.parameters()), module.parameters())
    with pytest.raises(ValueError, match="needs params="):
        ours.get_diff_optim(opt, module.parameters()).step(torch.zeros((), requires_grad=True))
    with pytest.raises(ValueError, match="'lr' must be a list of one value"):
        diffopt.step(fmodule(torch.zeros(2, 4)).sum(), override={"lr": [0.1, 0.2]})
    with pytest.raises(RuntimeError, match="loss has no graph"):
        diffopt.step(module(torch.zeros(2, 4)).sum().detach())
    with pytest.raises(IndexError, match="one tensor for each of the"):
        fmodule(torch.zeros(2, 4), params=list(fmodule.parameters())[1:])
    with pytest.raises(TypeError, match="must be a tensor"):
        fmodule[0].weight = 3
    with pytest.raises(ValueError, match="True or False"):
        fmodule.track_higher_grads = 1
    with pytest.raises(ValueError, match="fmodel= or params="):
        ours.create_diff_optim(SGD, {"lr": 0.1})
