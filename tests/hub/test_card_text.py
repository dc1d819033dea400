"""Text on a card: nothing of a user's is markup, nothing of this machine leaves it, and people's edits stay."""

import pytest
import yaml
from huggingface_hub import ModelCard

from hgkd_hf.hub import readme
from hgkd_hf.hub.privacy import HIDDEN, check_no_secrets, public, public_names

TOKEN = "hf_" + "aB3" * 12


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("resnet-18, 11 M", "resnet-18, 11 M"),
        ("a | b", r"a \| b"),
        ("*bold* _x_", r"\*bold\* \_x\_"),
        ("[link](http://x)", r"\[link\](http://x)"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("<!-- hgkd_hf: end -->", "&lt;!-- hgkd\\_hf: end --&gt;"),
        ("two\nlines", "two lines"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("1.5", "1.5"),
        ("{{ 7 * 7 }}", r"{{ 7 \* 7 }}"),
    ],
)
def test_escape(text: str, escaped: str):
    assert readme.escape(text) == escaped


@pytest.mark.parametrize(("text", "code"), [("a", "`a`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("", "")])
def test_code_cannot_be_left(text: str, code: str):
    assert readme.code(text) == code


def test_block_cannot_be_left():
    assert readme.block("a\n```\nb", "yaml") == "````yaml\na\n```\nb\n````"


OURS = readme.compose({"library_name": "transformers", "tags": ["hgkd"], "metrics": ["accuracy"]}, "# New")
OLD = readme.compose({"library_name": "timm", "tags": ["old"], "license": "mit"}, "# Old")


@pytest.mark.parametrize(
    "text", ["a\x1b[2Jb", "a\x00b", "a\u202eb\u2066", "a\x7f\x9bb", "a\tb", "a\r\nb", "a\vb"], ids=ascii
)
def test_nothing_unseen_is_written(text: str):
    for written in (readme.escape(text), readme.code(text), readme.block(text)):
        assert all(character.isprintable() or character in "\n\t" for character in written)
        assert "a" in written
        assert "b" in written


def test_tabs_of_a_block_are_kept():
    assert readme.block("a\tb") == "```\na\tb\n```"


def test_merge_renews_our_part_and_keeps_the_rest():
    edited = OLD.replace(readme.BEGIN, "Hello *world*\n\n" + readme.BEGIN) + "\n## My notes\nkept\n"
    merged = readme.merge(OURS, edited)
    metadata, body = readme.split(merged)
    assert metadata == {
        "library_name": "transformers",
        "tags": ["hgkd", "old"],
        "metrics": ["accuracy"],
        "license": "mit",
    }
    assert body == f"Hello *world*\n\n{readme.BEGIN}\n# New\n{readme.END}\n\n## My notes\nkept\n"
    assert readme.merge(OURS, merged) == merged
    assert readme.outside(merged) == "Hello *world*\n\n\n\n## My notes\nkept"


def test_merge_into_a_readme_without_our_part():
    assert readme.merge(OURS, None) == readme.merge(OURS, "") == OURS
    merged = readme.merge(OURS, "---\nlanguage: en\n---\n# By hand\n")
    metadata, body = readme.split(merged)
    assert metadata["language"] == "en"
    assert body == f"# By hand\n\n{readme.BEGIN}\n# New\n{readme.END}\n"
    assert readme.split(readme.merge(OURS, "no metadata"))[1].startswith("no metadata\n\n<!-- hgkd_hf: begin")


def test_text_that_looks_like_our_marker_does_not_break_a_merge():
    body = "# New\n" + readme.block(f"name: {readme.END}")
    twice = readme.merge(OURS, readme.merge(readme.compose({}, body), "Above"))
    assert readme.outside(twice) == "Above"
    assert twice.count(readme.END) == 1


def test_text_below_a_part_whose_end_was_deleted_is_not_lost():
    edited = OLD.replace(readme.END, "").rstrip() + "\n\n## Mine\n"
    once = readme.merge(OURS, edited)
    twice = readme.merge(OURS, once)
    assert twice == once
    assert readme.outside(twice).endswith("\n## Mine")
    assert twice.count("\n# New\n") == 1


def test_text_that_speaks_of_our_marks_stays():
    edited = OLD + f"\nI write below `{readme.END}`.\n"
    assert readme.merge(OURS, edited).endswith(f"{readme.END}\n\nI write below `{readme.END}`.\n")


def test_another_license_takes_its_name_and_link_with_it():
    theirs = "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\nlanguage: en\n---\n"
    metadata, _ = readme.split(readme.merge(readme.compose({"license": "mit"}, "# New"), theirs))
    assert metadata == {"license": "mit", "tags": [], "language": "en"}
    assert readme.split(readme.merge(OURS, theirs))[0]["license_name"] == "mine"


@pytest.mark.parametrize("broken", ["---\na: [\n---\n", "---\n- a\n---\n"])
def test_merge_refuses_metadata_that_it_cannot_read(broken: str):
    with pytest.raises(ValueError, match="the metadata of the README is not (valid YAML: .*|a YAML mapping)"):
        readme.merge(OURS, broken)


def test_composed_readme_is_a_model_card():
    card = ModelCard(OURS)
    assert card.data.to_dict() == yaml.safe_load(OURS.split("---")[1])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/data/sets/cifar10", "cifar10"),
        ("/data/my sets/cifar 10 and more", "cifar 10 and more"),
        ("--dataset=/data/sets/cifar10 --output_dir ~/runs/a", "--dataset=cifar10 --output_dir a"),
        ("../shared/data/x, split train", "x, split train"),
        (r"C:\Users\me\data", "data"),
        ("--dataset C:/Users/me/data --seed 1", "--dataset data --seed 1"),
        (r"\\host\me\data", "data"),
        ("file:///home/me/a%20b/data", "data"),
        ("~me/data, ~/a/b", "data, b"),
        ("/home/me=x/@me/a+b/data", "data"),
        ("(/home/me/data), [/home/me/data]", "(data), [data]"),
        ("--dataset '/data/My Drive/me/data' --seed 1", "--dataset 'data' --seed 1"),
        ("'--dataset=/data/My Drive/me/data' --seed 1", "'--dataset=data' --seed 1"),
        ('"C:/My Drive/me/data"', '"data"'),
        ("https://me:password@example.org/data", "https://example.org/data"),
        ("git+ssh://me@example.org/data", "git+ssh://example.org/data"),
        ("https://me:p@ss@word@example.org/a@b", "https://example.org/a@b"),
        ("https://example.org?to=a@b", "https://example.org?to=a@b"),
        (
            "https://example.org/x?token=a&n=1&sig=b&X-Amz-Signature=c",
            f"https://example.org/x?token={HIDDEN}&n=1&sig={HIDDEN}&X-Amz-Signature={HIDDEN}",
        ),
        ("PYTHONPATH=/a/me:/home/me/c", "PYTHONPATH=me:c"),
        ("imagefolder:/home/me/data", "imagefolder:data"),
        ("/home//me//data //home/me/data ./../me/data", "data data data"),
        ("file:///C:/Users/me/data FILE:///home/me/data", "data data"),
        (r"\\?\C:\Users\me\data", "data"),
        ("mail me@example.org", "mail me@example.org"),
        ("facebook/dinov2-base", "facebook/dinov2-base"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("runs/mine", "runs/mine"),
        ("8x8 and/or 1/2", "8x8 and/or 1/2"),
        (f"--hub_token {TOKEN}", f"--hub_token {HIDDEN}"),
        ("--hub_token s3cr3t --seed 1", f"--hub_token {HIDDEN} --seed 1"),
        ("--api_key='a b' --num_tokens 4", f"--api_key={HIDDEN} --num_tokens 4"),
        ('--hub-token="a b" HF_TOKEN=c python', f"--hub-token={HIDDEN} HF_TOKEN={HIDDEN} python"),
    ],
)
def test_public(text: str, left: str):
    assert public(text, paths=["/data/my sets/cifar 10", "not a path"]) == left


def test_public_value_that_is_a_place_here(tmp_path, monkeypatch):
    place = tmp_path / "My Drive" / "me, too"
    place.mkdir(parents=True)
    assert public(str(place)) == "me, too"
    monkeypatch.chdir(tmp_path)
    assert public("student (My Drive/me, too)", paths=["My Drive/me, too/"]) == "student (me, too)"
    assert public("My Drive/me, too") == "me, too"


@pytest.mark.parametrize("name", ["me", "me too", "me.too (work)"])
def test_the_name_of_the_home_is_not_told(tmp_path, monkeypatch, name):
    home = tmp_path / name
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert public(f"read {home}/runs/a b, then {home}") == "read a b, then ~"
    assert public(str(home)) == public(f"{home}/").rstrip("/") == "~"
    assert public({f"{home}/runs/a": [f"--dataset={home}"]}) == {"a": ["--dataset=~"]}


def test_public_names(tmp_path, monkeypatch):
    (tmp_path / "models" / "vit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = {
        "_name_or_path": "/home/me/a b/x",
        "teacher_name_or_path": ["models/vit", "alice/vit"],
        "encoder_config": {"_name_or_path": "facebook/dinov2-base", "id2label": {"0": "/m/01/dog"}},
        "layers": [{"name_or_path": "~/y"}],
    }
    assert public_names(config) == {
        "_name_or_path": "x",
        "teacher_name_or_path": ["vit", "alice/vit"],
        "encoder_config": {"_name_or_path": "facebook/dinov2-base", "id2label": {"0": "/m/01/dog"}},
        "layers": [{"name_or_path": "y"}],
    }


def test_public_data(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "correct horse")
    data = {
        "hub_token": "short",
        "HF-TOKEN": ["short"],
        "num_tokens": "4",
        "list": [1, None, True, "/a/b"],
        "note": "use correct horse now",
    }
    assert public(data) == {
        "hub_token": HIDDEN,
        "HF-TOKEN": HIDDEN,
        "num_tokens": "4",
        "list": [1, None, True, "b"],
        "note": f"use {HIDDEN} now",
    }


def test_files_with_secrets_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    file = tmp_path / "log.txt"
    for content in ("key 0123456789abcdef", TOKEN):
        file.write_text(content)
        with pytest.raises(ValueError, match="log.txt holds a token or key") as error:
            check_no_secrets([file])
        assert content.split()[-1] not in str(error.value)
    file.write_text("hf_hub and nothing else")
    check_no_secrets([file])
