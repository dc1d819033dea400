import json

import pytest
import torch

from hgkd_hf.checkpoints.identity import check_same_run, has_begun, weights_digest

SETTINGS = {"teacher": "a", "mask_ratio": 0.6, "crop_scale": (0.5, 1.0)}
CHANGED = SETTINGS | {"teacher": "b", "mask_ratio": 0.5}


def test_a_run_is_resumed_with_its_own_settings_alone(tmp_path, caplog):
    check_same_run(tmp_path, SETTINGS, resume=True, write=True)
    check_same_run(tmp_path, SETTINGS, resume=True, write=True)
    assert not caplog.text
    with pytest.raises(ValueError, match="started with other settings") as caught:
        check_same_run(tmp_path, CHANGED, resume=True, write=True)
    assert "(teacher was 'a', now 'b'; mask_ratio was 0.6, now 0.5)" in str(caught.value)
    assert str(caught.value).endswith("with --allow_changes teacher mask_ratio.")
    check_same_run(tmp_path, SETTINGS, resume=True, write=True)  # the refusal changed nothing


@pytest.mark.parametrize("allowed", [["teacher", "mask_ratio"], ["all"]])
def test_allowed_changes_are_named_and_recorded(tmp_path, caplog, allowed):
    check_same_run(tmp_path, SETTINGS, resume=False, write=True)
    check_same_run(tmp_path, CHANGED, resume=True, allow_changes=allowed, write=True)
    assert "changed settings: teacher was 'a', now 'b'; mask_ratio was 0.6, now 0.5" in caplog.text
    check_same_run(tmp_path, CHANGED, resume=True, write=True)
    with pytest.raises(ValueError, match="teacher was 'b', now 'a'"):
        check_same_run(tmp_path, SETTINGS, resume=True, write=True)


def test_one_change_allowed_is_not_the_other(tmp_path):
    check_same_run(tmp_path, SETTINGS, resume=False, write=True)
    with pytest.raises(ValueError, match=r"settings \(teacher was 'a', now 'b'\): .*--allow_changes teacher\."):
        check_same_run(tmp_path, CHANGED, resume=True, allow_changes=["mask_ratio"], write=True)


@pytest.mark.parametrize(
    ("name", "hint"), [("mask_rati", "did you mean mask_ratio?"), ("x", "it takes settings that")]
)
def test_a_name_that_is_not_compared(tmp_path, name, hint):
    with pytest.raises(ValueError, match=f"--allow_changes {name}: .*{hint}"):
        check_same_run(tmp_path, SETTINGS, resume=True, allow_changes=[name], write=True)


def test_records_of_before_a_setting_existed(tmp_path, caplog):
    check_same_run(tmp_path, SETTINGS, resume=False, write=True)
    newer = SETTINGS | {"depth": 2, "width": 3}
    with pytest.raises(ValueError, match=r"settings \(depth was 1, now 2\)"):
        check_same_run(tmp_path, newer, resume=True, write=True, earlier={"depth": 1})
    check_same_run(tmp_path, newer, resume=True, write=True, earlier={"depth": 2})
    assert "does not record width: resumed with what they are now" in caplog.text
    with pytest.raises(ValueError, match="width was 3, now 4"):
        check_same_run(tmp_path, newer | {"width": 4}, resume=True, write=True)


def test_what_a_record_lacks_the_checkpoint_tells(tmp_path):
    check_same_run(tmp_path, SETTINGS, resume=False, write=True)
    for step, rate in ((2, 0.1), (10, 0.2)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "training_args.json").write_text(json.dumps({"learning_rate": rate}))
    with pytest.raises(ValueError, match=r"settings \(learning_rate was 0.2, now 0.1\)"):
        check_same_run(tmp_path, SETTINGS | {"learning_rate": 0.1}, resume=True, write=True)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "\x00"])
def test_a_damaged_record(tmp_path, text):
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(ValueError, match=r"identity.json is damaged \(.*\), .*restore it, or delete it") as caught:
        check_same_run(tmp_path, SETTINGS, resume=True, write=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "identity.json").read_text() == text


def test_only_the_writer_writes(tmp_path):
    check_same_run(tmp_path, SETTINGS, resume=True, write=False)
    assert not list(tmp_path.iterdir())
    assert not has_begun(tmp_path)


def test_a_new_run_takes_the_folder(tmp_path):
    check_same_run(tmp_path, SETTINGS, resume=False, write=True)
    assert has_begun(tmp_path)
    check_same_run(tmp_path, SETTINGS | {"teacher": "b"}, resume=False, write=True)


def test_weights_digest_sees_one_bit():
    layer = torch.nn.BatchNorm2d(3)
    before = weights_digest(layer)
    assert weights_digest(torch.nn.BatchNorm2d(3)) == before
    layer.running_var[1] = 1 + 2**-23
    assert weights_digest(layer) != before
    assert weights_digest(torch.nn.Linear(2, 2).to(torch.bfloat16))
