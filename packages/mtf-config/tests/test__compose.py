from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_config import CompositionError, ExperimentConfig
from mtf_config._compose import compose
from mtf_config._overrides import choices

Write = Callable[[str, str | bytes], Path]
Load = Callable[..., ExperimentConfig]
Refusal = Callable[..., str]
BASE = "experiment_name: a\nmodel: {type: m}\ndata: {dataset_name: d}\n"


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that composes a file, and gives the plain values."""

    def _composed(name: str, *arguments: str) -> dict[str, Any]:
        return compose(tmp_path / name, name, choices(arguments)).tree.data

    return _composed


def test_later_wins(write: Write, composed: Callable[..., Any]) -> None:
    """Files are merged in the order of the list, the file's own keys last."""
    write("a.yaml", "x: {p: 1, q: 1, r: 1}\n")
    write("b.yaml", "x: {q: 2, r: 2}\n")
    write("c.yaml", "defaults: [a, b]\nx: {r: 3}\n")
    assert composed("c.yaml") == {"x": {"p": 1, "q": 2, "r": 3}}


@pytest.mark.parametrize(
    ("listed", "x"),
    [("[_self_, a, b]", 2), ("[a, _self_, b]", 2), ("[a, b, _self_]", 3), ("[]", 3)],
)
def test_self_is_where_it_stands(
    write: Write, composed: Callable[..., Any], listed: str, x: int
) -> None:
    """`_self_` says when the file's own keys come."""
    write("a.yaml", "x: 1\n")
    write("b.yaml", "x: 2\n")
    write("c.yaml", f"defaults: {listed}\nx: 3\n")
    assert composed("c.yaml") == {"x": x}


def test_files_in_folders_hang_below_them(
    write: Write, composed: Callable[..., Any]
) -> None:
    """Entries are relative to the folder of the list, and `/` is that of the first file."""
    write(
        "main.yaml",
        "defaults: [model/big, {optimizer: sgd}, /data/tiny, {/seedy: one}]\n",
    )
    write("model/big.yaml", "defaults: [parts/head]\nd: 1\n")
    write("model/parts/head.yaml", "h: 1\n")
    write("data/tiny.yaml", "n: 1\n")
    write("seedy/one.yaml", "s: 1\n")
    write("optimizer/sgd.yaml", "lr: 1\n")
    assert composed("main.yaml") == {
        "model": {"parts": {"h": 1}, "d": 1},
        "data": {"n": 1},
        "seedy": {"s": 1},
        "optimizer": {"lr": 1},
    }


@pytest.mark.parametrize("entry", ["/data/tiny", "{/data: tiny}"])
def test_entry_from_the_root_in_a_group(
    write: Write, refusal: Refusal, entry: str
) -> None:
    """Hydra would hang `/data` below the group; here it is refused rather than differ."""
    write("main.yaml", "defaults: [model/big]\n")
    write("model/big.yaml", f"defaults: [{entry}]\n")
    write("data/tiny.yaml", "n: 1\n")
    assert "stands only in a file at the root" in refusal("main.yaml")


def test_name_with_a_folder_in_it(write: Write, refusal: Refusal) -> None:
    """Hydra would hang `model: enc/e1` below `model` alone: the group is to be named."""
    write("main.yaml", "defaults: [{model: enc/e1}]\n")
    write("model/enc/e1.yaml", "n: 1\n")
    assert "`model`: a name holds no /" in refusal("main.yaml")


def test_optional_group_that_is_chosen(write: Write, refusal: Refusal) -> None:
    """A name on the command line is meant, even for an entry that is optional."""
    write("main.yaml", "defaults: [optional data: local]\n" + BASE)
    assert "the override for data: `data/lcoal`: no file" in refusal(
        "main.yaml", "data=lcoal"
    )


def test_name_through_many_folders(write: Write, refusal: Refusal) -> None:
    """A name of a thousand folders is refused at once."""
    write("main.yaml", f"defaults: [{'a/' * 1200}x]\n")
    assert "more than 32 folders" in refusal("main.yaml")


def test_several_of_a_group(write: Write, composed: Callable[..., Any]) -> None:
    """A list of names takes each file of the group, the later winning; null takes none."""
    write("main.yaml", "defaults: [{model: [a, b]}, {data: null}]\n")
    write("model/a.yaml", "x: 1\ny: 1\n")
    write("model/b.yaml", "x: 2\n")
    assert composed("main.yaml") == {"model": {"x": 2, "y": 1}}


def test_optional(write: Write, composed: Callable[..., Any], refusal: Refusal) -> None:
    """An optional file may be missing, but what is there must be right."""
    write("main.yaml", "defaults: [optional data: local]\nx: 1\n")
    assert composed("main.yaml") == {"x": 1}
    write("data/local.yaml", "n: 1\n")
    assert composed("main.yaml") == {"data": {"n": 1}, "x": 1}
    write("data/local.yaml", "n: [\n")
    assert refusal("main.yaml").startswith("data/local.yaml:2:1: ")


def test_file_name_with_its_suffix(write: Write, composed: Callable[..., Any]) -> None:
    """`.yaml` and `.yml` may be written, and other dots belong to the name."""
    write("main.yaml", "defaults: [a.yaml, b.yml, v1.2]\n")
    write("a.yaml", "a: 1\n")
    write("b.yml", "b: 1\n")
    write("v1.2.yaml", "c: 1\n")
    assert composed("main.yaml") == {"a": 1, "b": 1, "c": 1}


def test_defaults_through_an_alias(write: Write, composed: Callable[..., Any]) -> None:
    """A list that an alias repeats is read like any other."""
    write("main.yaml", "x: &list [a]\ndefaults: *list\n")
    write("a.yaml", "a: 1\n")
    assert composed("main.yaml") == {"a": 1, "x": ["a"]}


def test_trainer_is_training_everywhere(write: Write, load: Load) -> None:
    """The section's other name means the same in files, groups, folders and overrides."""
    write("base.yaml", BASE + "training: {max_epochs: 1, batch_size: 1}\n")
    write("trainer/long.yaml", "max_epochs: 5\n")
    write("training/wide.yaml", "batch_size: 9\n")
    write(
        "main.yaml",
        """\
        defaults: [base, {trainer: long}, training/wide]
        trainer: {max_grad_norm: 2.0}
        """,
    )
    training = load("main.yaml", "trainer.gradient_accumulation_steps=4").training
    assert (training.max_epochs, training.batch_size) == (5, 9)
    assert (training.max_grad_norm, training.gradient_accumulation_steps) == (2.0, 4)
    write("trainer/short.yaml", "max_epochs: 2\n")
    for group in ("trainer", "training"):
        assert load("main.yaml", f"{group}=short").training.max_epochs == 2


def test_section_under_two_names(write: Write, refusal: Refusal) -> None:
    """Both names in one file are refused."""
    write("a.yaml", BASE + "trainer: {}\ntraining: {}\n")
    assert refusal("a.yaml").startswith("a.yaml:4:1: trainer: `trainer` and `training`")


def test_provenance_names_each_file(write: Write, load: Load) -> None:
    """Every value knows the file, the line and the column it came from."""
    write("conf/base.yaml", BASE + "optimizer: {lr: 1.0, eps: 1.0}\n")
    write("conf/optimizer/sgd.yaml", "lr: 2.0\n")
    write("conf/main.yaml", "defaults: [base, {optimizer: sgd}]\nseed: 1\n")
    config = load("conf/main.yaml")
    keys = ("seed", "optimizer.lr", "optimizer.eps", "optimizer.momentum")
    assert [str(config.provenance(key)) for key in keys] == [
        "conf/main.yaml:2:7",
        "conf/optimizer/sgd.yaml:1:5",
        "conf/base.yaml:4:27",
        "default",
    ]


@pytest.mark.parametrize(
    ("arguments", "lr"),
    [((), 1), (("optimizer=b",), 2), (("optimizer=b", "optimizer=a"), 1),
     (("optimizer=[a, b]",), 2), (("optimizer='b'",), 2)],
)  # fmt: skip
def test_choice_by_override(
    write: Write, composed: Callable[..., Any], arguments: tuple[str, ...], lr: int
) -> None:
    """An override names another file, or several, and the last override counts."""
    write("main.yaml", "defaults: [{optimizer: a}]\n")
    write("optimizer/a.yaml", "lr: 1\n")
    write("optimizer/b.yaml", "lr: 2\n")
    assert composed("main.yaml", *arguments) == {"optimizer": {"lr": lr}}


def test_choice_of_none(write: Write, composed: Callable[..., Any]) -> None:
    """`group=null` takes no file of the group."""
    write("main.yaml", "defaults: [{optimizer: a}]\nx: 1\n")
    write("optimizer/a.yaml", "lr: 1\n")
    assert composed("main.yaml", "optimizer=null") == {"x": 1}


def test_choice_of_a_nested_group(write: Write, composed: Callable[..., Any]) -> None:
    """A group named by a file that an override chose can be chosen in turn."""
    write("main.yaml", "defaults: [{model: a}]\n")
    write("model/a.yaml", "a: 1\n")
    write("model/b.yaml", "defaults: [{head: x}]\n")
    write("model/head/x.yaml", "h: 1\n")
    write("model/head/y.yaml", "h: 2\n")
    assert composed("main.yaml", "model=b", "model/head=y") == {
        "model": {"head": {"h": 2}}
    }


def test_mandatory_choice(
    write: Write, composed: Callable[..., Any], tmp_path: Path
) -> None:
    """`???` must be chosen, and the message says how."""
    write("main.yaml", "defaults:\n  - optimizer: ???\n")
    write("optimizer/a.yaml", "lr: 1\n")
    with pytest.raises(CompositionError) as caught:
        compose(tmp_path / "main.yaml", "main.yaml")
    assert str(caught.value) == (
        "main.yaml:2:5: no default for `optimizer`: choose one with the override "
        "optimizer=NAME"
    )
    assert composed("main.yaml", "optimizer=a") == {"optimizer": {"lr": 1}}


def test_choice_of_nothing_that_is_there(write: Write, refusal: Refusal) -> None:
    """A wrong choice is laid to the override, not to the file."""
    write("main.yaml", "defaults: [{optimizer: adamw}]\n" + BASE)
    write("optimizer/adamw.yaml", "lr: 1.0\n")
    assert refusal("main.yaml", "optimizer=adam") == (
        "the override for optimizer: `optimizer/adam`: no file optimizer/adam.yaml; "
        "did you mean `adamw`?"
    )
    assert "the override for optimizer: `optimizer/` names no file" in refusal(
        "main.yaml", "optimizer="
    )
    assert "a name holds no /" in refusal("main.yaml", "optimizer=../main")


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("5", "main.yaml:1:11: `defaults` must be a list"),
        ("null", "main.yaml:1:11: `defaults` must be a list"),
        ("{a: b}", "main.yaml:1:11: `defaults` must be a list"),
        ("[1]", "main.yaml:1:12: write `- file`, `- group: name` or"),
        ("[[a]]", "main.yaml:1:12: write `- file`"),
        ("[{a: b, c: d}]", "main.yaml:1:12: write `- file`"),
        ("[{}]", "main.yaml:1:12: write `- file`"),
        ("[_self_, _self_]", "main.yaml:1:11: `_self_` stands twice"),
        ("[{g: 3}]", "main.yaml:1:12: `g`: a file's name must be text; put it in quotes"),
        ("[{g: [[a]]}]", "main.yaml:1:12: `g`: a file's name must be text"),
        ("[{g: {a: b}}]", "main.yaml:1:12: `g`: a file's name must be text"),
        ("[{override g: a}]", "main.yaml:1:12: `override g`: `override` and `@package`"),
        ("[{g@here: a}]", "main.yaml:1:12: `g@here`: `override` and `@package`"),
        ("[{a b: c}]", "main.yaml:1:12: `a b` names no folder below this one"),
        ("[{'a/': c}]", "`a/` names no folder below this one"),
        ("[{'..': c}]", "the key '..' is empty or holds a dot"),
        ("[{/: c}]", "`` names no folder below this one"),
        ("['']", "main.yaml:1:12: `` names no file below this one"),
        ("[../main]", "main.yaml:1:12: `../main` names no file below this one"),
        ("[/etc/passwd]", "`/etc/passwd`: no file etc/passwd.yaml"),
        ("[//etc/passwd]", "`/etc/passwd` names no file below this one"),
        ("[a/../../x]", "names no file below this one"),
        ("[a.b/c]", "names no file below this one"),
        ("['a\\b']", "names no file below this one"),
        ("['x\0']", "may not stand in YAML"),
        ('["x\\0"]', "names no file below this one"),
        ('["~/x"]', "names no file below this one"),
        ('["${env:HOME}"]', "names no file below this one"),
        ("[{g: /x}]", "`g`: a name holds no /"),
        ("[nothing]", "main.yaml:1:12: `nothing`: no file nothing.yaml; there are main"),
        ("[mian]", "main.yaml:1:12: `mian`: no file mian.yaml; did you mean `main`?"),
        ("[g/x]", "main.yaml:1:12: `g/x`: no file g/x.yaml"),
        ("[folder]", "`folder`: no file folder.yaml"),
        ("[dir.yaml]", "dir.yaml: is a folder; name the YAML file in it"),
        ("[pipe]", "pipe.yaml: is a pipe or a device, not a file"),
        (f"[{'x' * 300}]", "no file xxx"),
        (f"[{'x' * 300}/a]", "no file xxx"),
    ],
)
def test_wrong_lists(
    write: Write, refusal: Refusal, tmp_path: Path, listed: str, message: str
) -> None:
    """What is no defaults list, or leads nowhere, is refused at its place."""
    os.mkfifo(tmp_path / "pipe.yaml")
    Path(tmp_path, "folder").mkdir()
    Path(tmp_path, "dir.yaml").mkdir()
    write("main.yaml", f"defaults: {listed}\n{BASE}")
    assert message in refusal("main.yaml").replace("dir, main, pipe", "main")


def test_near_name_with_another_suffix(write: Write, refusal: Refusal) -> None:
    """A file that is there as `.yml` is proposed with its suffix."""
    write("main.yaml", "defaults: [base]\n")
    write("base.yml", BASE)
    assert "did you mean `base.yml`?" in refusal("main.yaml")


def test_list_of_what_is_there_is_short(write: Write, refusal: Refusal) -> None:
    """A folder of many files does not flood the message."""
    write("main.yaml", "defaults: [{g: nothing}]\n")
    for index in range(30):
        write(f"g/{index:02}.yaml", "")
    assert refusal("main.yaml").endswith("there are 00, 01, 02, 03, 04, 05, 06, 07, 08, "
                                         "09, ...")  # fmt: skip


@pytest.mark.parametrize(
    "header",
    ["# @package _global_\n", "\ufeff#@package x\r\n", "\n# a\n  # @package x\n"],
)
def test_package_header_is_refused(write: Write, refusal: Refusal, header: str) -> None:
    """A header that Hydra would obey is refused rather than passed over."""
    write("main.yaml", (header + BASE).encode())
    line = header.count("\n")
    assert refusal("main.yaml").startswith(f"main.yaml:{line}:1: `# @package` is not")


def test_comment_that_is_no_package_header(
    write: Write, composed: Callable[..., Any]
) -> None:
    """Only a header counts: the word elsewhere is text like any other."""
    write("main.yaml", "# the @package header\nx: '# @package y'\n# @package z\n")
    assert composed("main.yaml") == {"x": "# @package y"}


def test_circle(write: Write, refusal: Refusal) -> None:
    """Files that name each other in a circle are shown as one, at the closing entry."""
    write("main.yaml", "defaults: [a]\n")
    write("a.yaml", "defaults: [g/b]\n")
    write("g/b.yaml", "defaults:\n  - c\n")
    write("g/c.yaml", "defaults: [b]\n")
    assert refusal("main.yaml") == (
        "g/c.yaml:1:12: defaults go in a circle: g/b.yaml -> g/c.yaml -> g/b.yaml"
    )


def test_file_that_names_itself(write: Write, refusal: Refusal) -> None:
    """The smallest circle is one too."""
    write("main.yaml", "defaults: [main]\n")
    assert "circle: main.yaml -> main.yaml" in refusal("main.yaml")


def test_circle_through_a_linked_folder(
    write: Write, refusal: Refusal, tmp_path: Path
) -> None:
    """A folder linked into itself, where no name repeats, ends as well."""
    write("main.yaml", "defaults: [d/a]\n")
    write("d/a.yaml", "defaults: [d/a]\n")
    Path(tmp_path, "d", "d").symlink_to(".")
    assert "nested more than 32 levels" in refusal("main.yaml")


@pytest.mark.parametrize("link", ["file", "folder", "circle"])
def test_links_out_of_the_folder(
    write: Write, refusal: Refusal, tmp_path: Path, link: str
) -> None:
    """A link that leads out of the folder is refused, one that leads nowhere is too."""
    write("outside/secret.yaml", BASE)
    write("conf/main.yaml", "defaults:\n  - g/secret\n")
    group = tmp_path / "conf" / "g"
    if link == "folder":
        group.symlink_to("../outside")
    else:
        group.mkdir()
        target = {"file": "../../outside/secret.yaml", "circle": "secret.yaml"}[link]
        Path(group, "secret.yaml").symlink_to(target)
    if link == "circle":
        assert "conf/g/secret.yaml: cannot be read" in refusal("conf/main.yaml")
    else:
        assert refusal("conf/main.yaml") == (
            "conf/main.yaml:2:5: `g/secret` leads out of the folder "
            f"{Path('conf').absolute()}"
        )


def test_links_inside_the_folder(
    write: Write, composed: Callable[..., Any], tmp_path: Path
) -> None:
    """Links that stay inside are followed, and the folder itself may be one."""
    write("real/main.yaml", "defaults: [b]\n")
    write("real/a.yaml", "x: 1\n")
    Path(tmp_path, "real", "b.yaml").symlink_to("a.yaml")
    Path(tmp_path, "conf").symlink_to("real")
    assert composed("conf/main.yaml") == {"x": 1}


def test_long_chain(write: Write, refusal: Refusal, load: Load) -> None:
    """A chain of files has a limit, which is not that of Python's stack."""
    for index in range(200):
        write(f"f{index}.yaml", f"defaults: [f{index + 1}]\n")
    write("f200.yaml", BASE)
    assert load("f150.yaml").experiment_name == "a"
    assert refusal("f0.yaml").startswith("f50.yaml:1:12: defaults lead on through more")


def test_diamonds(write: Write, refusal: Refusal) -> None:
    """Files that each name the next one twice end at the limit, not after 2**40 reads."""
    for index in range(40):
        write(f"f{index}.yaml", f"defaults: [f{index + 1}, f{index + 1}]\n")
    write("f40.yaml", BASE)
    assert "defaults name more than 500 files or 50000 values" in refusal("f0.yaml")


def test_many_large_files(write: Write, refusal: Refusal) -> None:
    """Files small enough alone are refused together."""
    values = "".join(f"k{index}: 1\n" for index in range(6_000))
    write("big.yaml", values)
    write("main.yaml", f"defaults: [{', '.join(['big'] * 10)}]\n")
    assert "defaults name more than 500 files or 50000 values" in refusal("main.yaml")


def test_files_in_a_circle_twice_is_no_circle(
    write: Write, composed: Callable[..., Any]
) -> None:
    """A file that two others build on is read for each of them."""
    write("main.yaml", "defaults: [a, b]\n")
    write("a.yaml", "defaults: [base]\na: 1\n")
    write("b.yaml", "defaults: [base]\nb: 1\n")
    write("base.yaml", "a: 0\nb: 0\n")
    assert composed("main.yaml") == {"a": 0, "b": 1}


def test_hostile_text_in_a_deeper_file_names_that_file(
    write: Write, refusal: Refusal
) -> None:
    """A fault in any file of the composition names that file."""
    write("main.yaml", "defaults: [{model: m}]\n" + BASE)
    write("model/m.yaml", "type: m\nlayers: !!python/tuple [1]\n")
    assert refusal("main.yaml").startswith("model/m.yaml:2:9: the tag '!!python/tuple'")


def test_groups_are_those_in_use(write: Write, tmp_path: Path) -> None:
    """Composition reports every group that a list names, by its full and one name."""
    write("main.yaml", "defaults: [{trainer: a}, {optional model: none}, x]\n")
    write("trainer/a.yaml", "defaults: [{sub: b}]\n")
    write("trainer/sub/b.yaml", "")
    write("x.yaml", "")
    groups = compose(tmp_path / "main.yaml", "main.yaml").groups
    assert groups == {"training", "training/sub", "model"}
