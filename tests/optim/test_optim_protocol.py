"""The optimizers behave as torch.optim's: checkpoints, copies, groups, schedulers, closures, hooks, scalers, errors."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from metagan_fast import optim
from optim_cases import CASES, NAMES, Run, case_id, check, natively


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
@pytest.mark.parametrize("first, then", [(torch.optim, optim), (optim, torch.optim)], ids=["to us", "to torch"])
def test_checkpoints_are_exchanged(name: str, arguments: dict[str, Any], first: Any, then: Any) -> None:
    run, whole = Run(first, name, arguments), Run(torch.optim, name, arguments)
    for _ in range(3):
        run.step()
        whole.step()
    file = io.BytesIO()
    torch.save(run.optimizer.state_dict(), file)
    file.seek(0)
    run.optimizer = getattr(then, name)(run.params, lr=7.0)
    run.optimizer.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        with natively() if then is optim else contextlib.nullcontext():
            run.step()
        whole.step()
    check(run, whole, "optimizer-steps")
    assert run.optimizer.state_dict()["param_groups"] == whole.optimizer.state_dict()["param_groups"]
    assert run.optimizer.defaults.keys() == whole.optimizer.defaults.keys()


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_copies_and_pickles_go_on(name: str, arguments: dict[str, Any]) -> None:
    run, whole = Run(optim, name, arguments), Run(torch.optim, name, arguments)
    run.step()
    whole.step()
    run.params, run.optimizer = copy.deepcopy((run.params, run.optimizer))
    assert type(run.optimizer) is getattr(optim, name)
    run.step()
    whole.step()
    check(run, whole, "optimizer-steps")


@pytest.mark.parametrize(
    "name, arguments",
    [
        *(("SGD", x) for x in ({"lr": -1.0}, {"momentum": -1.0}, {"weight_decay": -1.0}, {"nesterov": True})),
        *((n, x) for n in ("Adam", "AdamW") for x in ({"betas": (1.0, 0.9)}, {"eps": -1.0}, {"lr": -1.0})),
        *(("RMSprop", x) for x in ({"alpha": -1.0}, {"momentum": -1.0}, {"lr": torch.ones(2)})),
        *((n, {"fused": True, "foreach": True}) for n in ("SGD", "Adam", "AdamW")),
        *((n, {"fused": True, "differentiable": True}) for n in ("SGD", "Adam", "AdamW")),
        *((n, {"no_such_option": 1}) for n in NAMES),
    ],
    ids=case_id,
)
def test_bad_arguments_raise_what_torch_raises(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RuntimeError, TypeError)) as expected:
        getattr(torch.optim, name)([nn.Parameter(torch.ones(1))], **arguments)
    with pytest.raises(expected.type) as actual:
        getattr(optim, name)([nn.Parameter(torch.ones(1))], **arguments)
    assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize("name", NAMES)
def test_bad_parameters_raise_what_torch_raises(name: str) -> None:
    make = getattr(optim, name)
    param = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    with pytest.raises(TypeError):
        make(param)
    with pytest.raises(ValueError, match="non-leaf"):
        make([param * 2])
    optimizer = make([param])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [param]})
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop"])
def test_capturable_is_refused_on_a_cpu_as_by_torch(name: str) -> None:
    for module in (torch.optim, optim):
        run = Run(module, name, {"capturable": True}, [(3,)])
        with pytest.raises(AssertionError, match="capturable=True"):
            run.step()


def test_a_buffer_of_none_in_a_checkpoint_is_none_yet() -> None:
    run, whole = (Run(module, "SGD", {"lr": 0.1, "momentum": 0.9}, [(3,)]) for module in (optim, torch.optim))
    state = run.optimizer.state_dict()
    state["state"] = {0: {"momentum_buffer": None}}
    run.optimizer.load_state_dict(state)
    for _ in range(2):
        run.step()
        whole.step()
    check(run, whole, "optimizer-steps")


@pytest.mark.parametrize("name", NAMES)
def test_groups_have_options_of_their_own(name: str) -> None:
    def run(module: Any) -> Run:
        result = Run(module, name, {"lr": 0.1}, [(5,), (4,), (3,)])
        first, second, third = result.params
        result.optimizer = getattr(module, name)(
            [{"params": [first], "lr": 0.5}, {"params": second, "weight_decay": 0.3}], lr=0.01
        )
        result.step(frozenset({2}))
        result.optimizer.add_param_group({"params": [third], "maximize": True})
        result.step()
        return result

    ours, torchs = run(optim), run(torch.optim)
    check(ours, torchs, "optimizer-steps")
    assert repr(ours.optimizer) == repr(torchs.optimizer)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 3),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=6, cycle_momentum=hasattr(o, "betas")),
    ],
    ids=["exponential", "cosine", "one cycle"],
)
def test_schedulers(name: str, make: Any) -> None:
    runs = []
    for module in (optim, torch.optim):
        run = Run(module, name, {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {})})
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as "step() was not called"
            scheduler = make(run.optimizer)
            for _ in range(5):
                run.step()
                scheduler.step()
        runs.append(run)
    check(*runs, "optimizer-steps")


def test_one_cycle_moves_betas_too() -> None:
    runs = []
    for module in (optim, torch.optim):
        run = Run(module, "Adam", {"lr": 0.1})
        scheduler = torch.optim.lr_scheduler.OneCycleLR(run.optimizer, 0.3, total_steps=6)
        for _ in range(5):
            run.step()
            scheduler.step()
        runs.append(run)
    assert runs[0].optimizer.param_groups[0]["betas"] != (0.9, 0.999)
    check(*runs, "optimizer-steps")


@pytest.mark.parametrize("name", NAMES)
def test_a_learning_rate_may_be_a_tensor(name: str) -> None:
    def run(module: Any) -> Run:
        lr = torch.tensor(0.5)
        result = Run(module, name, {"lr": lr})
        result.step()
        lr.mul_(0.1)
        result.step()
        return result

    with natively():
        ours = run(optim)
    check(ours, run(torch.optim), "optimizer-steps")


def test_closure() -> None:
    param = nn.Parameter(torch.tensor([2.0, -4.0]))
    optimizer = optim.SGD([param], lr=0.25)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (param * param).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == 20.0 and loss.requires_grad
    assert param.tolist() == [1.0, -2.0]
    assert optimizer.step() is None


@pytest.mark.parametrize("name", NAMES)
def test_hooks_run_once_a_step(name: str) -> None:
    run = Run(optim, name, {"lr": 0.1}, [(3,)])
    seen: list[str] = []
    handles = [
        run.optimizer.register_step_pre_hook(lambda *_: seen.append("before")),
        run.optimizer.register_step_post_hook(lambda *_: seen.append("after")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global")),
    ]
    run.step()
    for handle in handles:
        handle.remove()
    run.step()
    assert seen == ["before", "after", "global"]


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_autograd_notices_the_change(name: str, arguments: dict[str, Any]) -> None:
    run = Run(optim, name, arguments, [(3,)])
    run.step()
    (param,) = run.params
    state = [value for key, value in run.optimizer.state.get(param, {}).items() if key != "step"]
    for changed in (param, *state):
        probe = torch.ones(3, requires_grad=True)
        loss = (probe * changed).sum()  # saves `changed`
        run.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_steps_are_not_recorded() -> None:
    run = Run(optim, "Adam", {"lr": 0.1}, [(3,)])
    run.step()
    (param,) = run.params
    assert param.is_leaf and param.grad_fn is None and param.grad is not None
    run.optimizer.zero_grad()
    assert param.grad is None
    assert all(not value.requires_grad for value in run.optimizer.state[param].values())


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_gradients_that_a_scaler_leaves_scaled(name: str) -> None:
    def run(module: Any, fused: bool) -> Run:
        result = Run(module, name, {"lr": 0.1, "fused": fused}, [(5,)])
        (param,) = result.params
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for factor in (1.0, torch.inf, 2.0):
            result.optimizer.zero_grad()
            scaler.scale((param * param * factor).sum()).backward()
            scaler.step(result.optimizer)
            scaler.update()
        return result

    for fused in (True, False):
        check(run(optim, fused), run(torch.optim, fused), "optimizer-steps")


def test_inference_mode() -> None:
    with torch.inference_mode():
        runs = [Run(module, "Adam", {"lr": 0.1}) for module in (optim, torch.optim)]
        for run in runs:
            run.step()
            run.step()
        check(*runs, None)


@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_counts_under_a_float64_default(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        runs = [Run(module, name, {"lr": 0.1}) for module in (optim, torch.optim)]
        for run, _ in itertools.product(runs, range(3)):
            run.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(state["step"].dtype == torch.float64 for state in runs[0].optimizer.state.values())
    check(*runs, "optimizer-steps")


def test_other_names_are_torchs() -> None:
    with pytest.raises(AttributeError, match=r"has SGD, Adam, AdamW, RMSprop, not 'lr_scheduler'; .* use torch\.optim"):
        _ = optim.lr_scheduler
    assert not hasattr(optim, "__path__")
