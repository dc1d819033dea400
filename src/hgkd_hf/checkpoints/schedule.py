"""A checkpoint's optimizer and schedule under the settings of the run that resumes: steps are its, settings theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

# What of a parameter group the arguments decide and no step changes.
_SETTINGS = ("initial_lr", "betas", "eps", "weight_decay")


def group_settings(optimizer: Optimizer, with_rate: bool) -> list[dict[str, Any]]:
    """The settings of each parameter group of an optimizer with a schedule, with its learning rate or without."""
    names = (*_SETTINGS, "lr") if with_rate else _SETTINGS
    return [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]


def restore_settings(optimizer: Optimizer, settings: Sequence[Mapping[str, Any]]) -> None:
    """Put `group_settings` of before a state was loaded over what the state brought."""
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def restore_schedule(scheduler: LRScheduler, state: Mapping[str, Any]) -> None:
    """Have a schedule continue after the steps of a saved one.

    The schedules that are functions of the step, which all but `reduce_lr_on_plateau` and `greedy` are, take the
    number of steps alone: with the same settings they give bit for bit the rates of the saved one, with others theirs.

    Args:
        scheduler: of the run that resumes, around an optimizer whose state is loaded.
        state: the `state_dict` of the saved one, of the same kind.
    """
    if not isinstance(scheduler, LambdaLR):
        scheduler.load_state_dict(dict(state))
        return
    scheduler.last_epoch, scheduler._step_count = state["last_epoch"], state["_step_count"]
    rates = [base * factor(scheduler.last_epoch) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
