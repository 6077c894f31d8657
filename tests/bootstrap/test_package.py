"""A package is read as the vendor's firewall reads it, and what that would refuse is explained instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from everwall.bootstrap import faults
from everwall.bootstrap.faults import BootstrapError, NoConfigurationError, PackageError
from everwall.bootstrap.load import load_bootstrap
from everwall.bootstrap.machine import Machine, this_machine
from everwall.bootstrap.package import look_over, names_in
from everwall.bootstrap.zones import read_policy_of
from everwall.limits import PACKAGE_FILES_MAX
from everwall.policy.compile import compile_policy
from tests.examples import EXAMPLES, ROOT, sources

WHOLE = ["config/", "config/init-cfg.txt", "content/", "license/", "software/"]


def test_a_whole_package_is_not_worth_a_word() -> None:
    package = look_over(WHOLE, "p")
    assert (package.init_cfg, package.bootstrap_xml) == ("config/init-cfg.txt", None)
    assert (package.warnings, package.notes, package.others) == ((), (), ())


@pytest.mark.parametrize("own", ["0078", "4212ABCD-0000-11EE-be56-0242ac120002"])
def test_the_file_for_this_machine_goes_before_the_one_for_all(own: str) -> None:
    names = [*WHOLE, "config/0078-init-cfg.txt", "config/4212abcd-0000-11ee-be56-0242ac120002-init-cfg.txt"]
    package = look_over(names, "p", ["unknown", own])
    assert package.init_cfg == f"config/{own.lower()}-init-cfg.txt"
    assert (
        f"p: config/init-cfg.txt: not used, because {own.lower()}-init-cfg.txt is for this machine"
        in package.notes
    )
    assert sum("is for another machine" in note for note in package.notes) == 1
    assert look_over(names, "p", ["unknown"]).init_cfg == "config/init-cfg.txt"


def test_missing_folders_are_notes_and_foreign_things_are_warnings() -> None:
    package = look_over(
        ["config/", "config/init-cfg.txt", "licence/", "licence/authcodes", "README", "plugins/"], "p"
    )
    assert package.notes == tuple(
        f"p: {folder}/ is missing: not needed here, but the vendor's firewall wants it"
        for folder in ("content", "license", "software")
    )
    assert package.warnings == (
        "p: 'licence/' is not part of a package (did you mean license?): ignored here, "
        "the vendor's firewall refuses it",
        "p: 'README' is not part of a package: ignored here, the vendor's firewall refuses it",
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("license/authcodes", "Everwall needs no licence"),
        ("license/0078.key", "Everwall needs no licence"),
        (
            "license/authcodes.txt",
            "Everwall needs no licence (and no licence: the vendor reads authcodes, without",
        ),
        ("content/panupv2-all-apps-8000", "nothing is updated from a package"),
        ("software/PanOS_vm-11.1.0", "upgraded the way it was installed"),
        ("plugins/vm_series-5.1.6", "there are no plugins"),
    ],
)
def test_each_file_that_is_not_used_is_explained(name: str, why: str) -> None:
    (note,) = look_over([*WHOLE, name], "p").notes
    assert note.startswith(f"p: {name}: not used, because ")
    assert why in note


def test_a_file_that_keeps_a_folder_in_git_is_not_worth_a_word() -> None:
    assert look_over([*WHOLE, "content/.gitkeep"], "p").notes == ()


@pytest.mark.parametrize("name", ["Bootstrap.xml", "bootstrap.XML", "bootstap.xml"])
def test_a_name_that_is_almost_right_is_not_passed_over(name: str) -> None:
    package = look_over([*WHOLE, f"config/{name}"], "p")
    assert package.bootstrap_xml is None
    assert package.warnings == (f"p: config/{name}: not read: the name is bootstrap.xml, exactly",)


def test_a_folder_is_listed_with_its_empty_folders_and_not_without_end(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "init-cfg.txt").write_text("")
    (tmp_path / "content").mkdir()
    assert sorted(names_in(tmp_path)) == ["config/", "config/init-cfg.txt", "content/"]
    for number in range(PACKAGE_FILES_MAX):
        (tmp_path / "content" / str(number)).touch()
    with pytest.raises(PackageError, match="at most 1000 files"):
        names_in(tmp_path)


def test_a_folder_that_is_no_package_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(NoConfigurationError, match=r"a bootstrap package with config/init-cfg\.txt in it"):
        load_bootstrap(tmp_path)


def test_the_firmware_says_what_the_machine_is(tmp_path: Path) -> None:
    assert this_machine(tables=tmp_path) == Machine()
    (tmp_path / "product_serial").write_text("ec2abc\n")
    (tmp_path / "product_uuid").write_text("ec2abc-1\n")
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    assert this_machine(tables=tmp_path) == Machine(("ec2abc", "ec2abc-1"), "aws")
    assert this_machine("0078", tmp_path).names == ("0078", "ec2abc", "ec2abc-1")


@pytest.mark.parametrize("place", sources())
def test_every_example_is_whole(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``test_boot.py`` starts a node with each."""
    monkeypatch.setattr("everwall.bootstrap.sources.secret_text", lambda *_: "5a17b3449d8e60f1" * 4)
    bootstrap = load_bootstrap(sources()[place], machine=Machine(platform="aws"))
    policy = read_policy_of(bootstrap.config)
    compile_policy(policy, bootstrap.config.resiliency_mode)
    assert bootstrap.config.gwlb_inspect
    assert bootstrap.config.mgmt_interface_swap
    assert bootstrap.config.session_resiliency
    assert bootstrap.config.standing == ("on" if "user-data" in place else "held back")


def test_no_example_is_left_out() -> None:
    assert {str(path.relative_to(ROOT)) for path in EXAMPLES.iterdir()} <= {*sources()}


def test_the_page_names_every_error() -> None:
    page = (ROOT / "docs" / "bootstrap.md").read_text().split("## Errors\n")[1]
    kinds = [
        kind for kind in vars(faults).values() if isinstance(kind, type) and issubclass(kind, BootstrapError)
    ]
    for kind in kinds:
        if kind is not BootstrapError:
            assert f"| {kind.title} |" in page
