"""What the set-up installs, and how it may be."""

import re
import subprocess
import sys

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.helpers.commands import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGES = {
    ("3.10", "linux", "x86_64"): "fairseq==0.12.2",
    ("3.10", "darwin", "arm64"): "fairseq==0.12.2",
    ("3.11", "linux", "x86_64"): "ve-fairseq==0.12.3",
    ("3.12", "linux", "x86_64"): "ve-fairseq==0.12.3",
    ("3.13", "linux", "x86_64"): "fairseq-fixed==0.12.3.1",
    ("3.11", "linux", "aarch64"): "fairseq-fixed==0.12.3.1",
    ("3.12", "darwin", "x86_64"): "fairseq-fixed==0.12.3.1",
}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def hashed():
    text = (ROOT / "fairseq.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", line) for line in lines)
    return [line.split("--hash")[0] for line in lines]


def chosen(lines, python, system, machine):
    place = {"python_version": python, "sys_platform": system, "platform_machine": machine}
    found = [Requirement(line) for line in lines]
    return [
        f"{one.name}{one.specifier}"
        for one in found
        if "fairseq" in one.name and (one.marker or Marker("'' == ''")).evaluate(place)
    ]


@pytest.mark.parametrize(("place", "package"), PACKAGES.items(), ids=map("-".join, PACKAGES))
def test_one_fairseq_for_each_platform(place, package):
    assert chosen(project()["dependencies"], *place) == [package]
    assert chosen(hashed(), *place) == [package]


def test_it_is_refused_away_from_the_repository(tmp_path):
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", tmp_path]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.endswith("run `pip install -c constraints.txt -e .` in it\n")
    assert not list(tmp_path.iterdir())


def test_constraints_pin_each_package_for_each_python():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    asked = [*project()["dependencies"], *sum(project()["optional-dependencies"].values(), [])]
    for name in {Requirement(line).name for line in asked}:
        if "fairseq" in name:
            continue
        for python in ("3.10", "3.11", "3.12", "3.13"):
            found = [
                str(one.specifier)
                for one in pinned
                if one.name == name
                and (one.marker is None or one.marker.evaluate({"python_version": python}))
            ]
            assert len(found) == 1 and found[0].startswith("=="), (name, python, found)


def test_an_environment_without_one_of_them_is_made_anew():
    """What the set-up looks for is what pyproject.toml asks for."""
    text = (ROOT / "environment.sh").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^MODULES=\(([^)]*)\)$", text, re.MULTILINE)
    asked = {Requirement(line).name for line in project()["dependencies"]}
    asked = {"fairseq" if "fairseq" in name else name for name in asked} | {"fairseq_csp"}
    assert set(listed.split()) == {"PIL" if name == "pillow" else name for name in asked}
