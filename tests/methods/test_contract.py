"""Every method keeps the contract that trainer, evaluation, report and hub rely on."""

import pytest
from contract import CHECKS, Built

from hgkd_hf.methods.registry import METHODS


@pytest.fixture(scope="module", params=METHODS)
def built(request, world):
    return Built(METHODS[request.param], request.param, world)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(built, check, tmp_path):
    check(built, tmp_path)
