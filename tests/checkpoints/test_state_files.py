import pytest
import torch

from hgkd_hf.checkpoints.state_files import load_state, save_state


def test_state_comes_back_as_it_was(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.9, 0.95))
    model(torch.randn(2, 3, 5, 5)).square().mean().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), 3: (1, [2.5, None, True, "a"], ()), "empty": {}, "nan": float("inf")}
    save_state(state, tmp_path / "state.safetensors")
    back = load_state(tmp_path / "state.safetensors")
    assert back[3] == state[3]
    assert (back["empty"], back["nan"]) == ({}, float("inf"))
    assert back["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    for index, entry in state["optimizer"]["state"].items():
        for name, tensor in entry.items():
            found = back["optimizer"]["state"][index][name]
            assert torch.equal(found, tensor)
            assert (found.stride(), found.dtype) == (tensor.stride(), tensor.dtype)


def test_nothing_is_pickled(tmp_path):
    with pytest.raises(TypeError, match="a training state holds a Generator, which has no safe form"):
        save_state({"generator": torch.Generator()}, tmp_path / "state.safetensors")


def test_foreign_file(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds no training state"):
        load_state(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        "{",
        "[" * 100_000,
        '{"tensor": ["1", [1]]}',
        '{"tensor": ["0"]}',
        '{"tensor": ["0", [1, 1]]}',
        '{"list": 1}',
        '{"dict": [[1]]}',
        '{"dict": [[{"list": []}, 1]]}',
        '{"a": [], "b": []}',
        "{}",
    ],
    ids=lambda header: header[:30],
)
def test_damaged_header(tmp_path, header):
    from safetensors.torch import save_file

    save_file({"0": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"state": header})
    with pytest.raises(ValueError, match="holds no training state"):
        load_state(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"{}", (2**62).to_bytes(8, "little") + b"{}", bytes(64)], ids=len)
def test_file_that_is_not_safetensors(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="holds no training state"):
        load_state(tmp_path / "a.safetensors")
