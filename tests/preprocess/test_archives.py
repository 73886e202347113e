import io
import os
import tarfile
import zipfile

import pytest

from fairseq_csp.errors import UserError
from preprocess.archives import NothingFoundError, RawRelease

CONTENT = {"a/one.txt": b"1" * 70_000, "a/two.txt": b"2", "b/three.bin": os.urandom(200_000)}


@pytest.fixture
def directory(tmp_path):
    for name, content in CONTENT.items():
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "raw"


@pytest.fixture(params=["directory", "tar", "tar.gz", "tar.xz", "zip", "tar.gz named .gz"])
def release(request, directory, tmp_path):
    if request.param == "directory":
        return directory
    path = tmp_path / f"release.{request.param.split('named .')[-1]}"
    if request.param == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in CONTENT:
                archive.write(directory / name, name)
    else:
        mode = {"tar": "w", "tar.xz": "w:xz"}.get(request.param, "w:gz")
        with tarfile.open(path, mode) as archive:
            archive.add(directory, ".")
    return path


def read(path, wanted=lambda name: True):
    return {name: file.read() for name, file in RawRelease(path).files(wanted, "text")}


def test_every_form_gives_the_same_files(release):
    assert read(release) == CONTENT
    assert list(read(release, lambda name: name.endswith(".txt"))) == ["a/one.txt", "a/two.txt"]


def test_description_has_a_hash_of_what_was_read(release):
    raw = RawRelease(release)
    list(raw.files(lambda name: True, "text"))
    assert len(raw.description()["sha256"]) == 64


def tar_with(path, name, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "/etc/passwd"
        archive.addfile(member, io.BytesIO())
    return path


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("/etc/shadow", tarfile.REGTYPE, "absolute"),
        ("a/../../x", tarfile.REGTYPE, "climbs out"),
        ("a\\..\\x", tarfile.REGTYPE, "climbs out"),
        ("C:\\x", tarfile.REGTYPE, "absolute"),
        ("soft", tarfile.SYMTYPE, "link"),
        ("hard", tarfile.LNKTYPE, "link"),
        ("pipe", tarfile.FIFOTYPE, "device"),
        ("disk", tarfile.BLKTYPE, "device"),
    ],
)
def test_unsafe_tar_members_are_refused_by_name(tmp_path, name, kind, reason):
    path = tar_with(tmp_path / "bad.tar.gz", name, kind)
    # whether or not they are wanted
    with pytest.raises(UserError, match=reason) as caught:
        read(path, lambda name: False)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["/x", "../x", "link"])
def test_unsafe_zip_members_are_refused_by_name(tmp_path, name):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match="refused") as caught:
        read(path)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_archives_are_told(directory, tmp_path, kind, share):
    path = tmp_path / "cut"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in CONTENT:
                archive.write(directory / name, name)
    else:
        with tarfile.open(path, {"tar": "w", "tar.xz": "w:xz"}.get(kind, "w:gz")) as archive:
            archive.add(directory, ".")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="cut short or damaged"):
        read(path)


@pytest.mark.parametrize(("offset", "value"), [(6, 1), (8, 98)], ids=["encrypted", "compression"])
def test_zip_members_that_cannot_be_read_are_told(tmp_path, offset, value):
    path = tmp_path / "release.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    content = bytearray(path.read_bytes())
    for header in (0, content.index(b"PK\x01\x02") + 2):
        content[header + offset] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a tar or zip archive"):
        read(path)


def test_a_tar_header_that_claims_too_much_is_told(tmp_path):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 10**15
    (tmp_path / "release.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(UserError, match="cannot be read as a tar or zip archive"):
        read(tmp_path / "release.tar")


def test_other_files_are_told(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="tar or zip"):
        read(tmp_path / "text")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "missing")


def test_a_release_without_the_files_looked_for_is_told(directory):
    with pytest.raises(NothingFoundError, match="raw holds no text"):
        read(directory, lambda name: False)
