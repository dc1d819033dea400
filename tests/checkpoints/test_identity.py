import pytest
import torch

from hgkd_hf.checkpoints.identity import check_same_run, has_begun, weights_digest

SETTINGS = {"teacher": "a", "mask_ratio": 0.6, "crop_scale": (0.5, 1.0)}


def test_a_run_goes_on_with_its_own_settings_only(tmp_path):
    check_same_run(tmp_path, SETTINGS, goes_on=True, allow_changes=False, write=True)
    check_same_run(tmp_path, SETTINGS, goes_on=True, allow_changes=False, write=True)
    changed = SETTINGS | {"teacher": "b", "mask_ratio": 0.5}
    with pytest.raises(ValueError) as caught:
        check_same_run(tmp_path, changed, goes_on=True, allow_changes=False, write=True)
    assert "(teacher was 'a', now 'b'; mask_ratio was 0.6, now 0.5)" in str(caught.value)
    assert "--allow_changes" in str(caught.value)
    check_same_run(tmp_path, SETTINGS, goes_on=True, allow_changes=False, write=True)  # the refusal changed nothing
    check_same_run(tmp_path, changed, goes_on=True, allow_changes=True, write=True)
    check_same_run(tmp_path, changed, goes_on=True, allow_changes=False, write=True)
    with pytest.raises(ValueError, match="teacher was 'b', now 'a'"):
        check_same_run(tmp_path, SETTINGS, goes_on=True, allow_changes=False, write=True)


def test_only_the_writer_writes(tmp_path):
    check_same_run(tmp_path, SETTINGS, goes_on=True, allow_changes=False, write=False)
    assert not list(tmp_path.iterdir())
    assert not has_begun(tmp_path)


def test_a_new_run_takes_the_folder(tmp_path):
    check_same_run(tmp_path, SETTINGS, goes_on=False, allow_changes=False, write=True)
    assert has_begun(tmp_path)
    check_same_run(tmp_path, SETTINGS | {"teacher": "b"}, goes_on=False, allow_changes=False, write=True)


def test_weights_digest_sees_one_bit():
    layer = torch.nn.BatchNorm2d(3)
    before = weights_digest(layer)
    assert weights_digest(torch.nn.BatchNorm2d(3)) == before
    layer.running_var[1] = 1 + 2**-23
    assert weights_digest(layer) != before
    assert weights_digest(torch.nn.Linear(2, 2).to(torch.bfloat16))
