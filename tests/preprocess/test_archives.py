import gzip
import io
import os
import tarfile
import tracemalloc
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


def itself(name):
    return name


def nothing(name):
    return None


def text(name):
    return name if name.endswith(".txt") else None


def read(path, part=itself):
    return {name: file.read() for name, file in RawRelease(path).files(part, "text")}


def test_every_form_gives_the_same_files(release):
    assert read(release) == CONTENT
    assert list(read(release, text)) == [
        "a/one.txt",
        "a/two.txt",
    ]


def test_description_has_a_hash_of_what_was_read(release):
    raw = RawRelease(release)
    list(raw.files(itself, "text"))
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
        read(path, nothing)
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


# --- headers that claim much, of which tarfile reads every byte into memory


def header(kind, size, name="x"):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def sparse_headers(number):
    """A sparse file's header, and as many that go on with it."""
    first = bytearray(header(tarfile.GNUTYPE_SPARSE, 0))
    first[482] = 1
    first[148:156] = b"%06o\0 " % (sum(first[:148]) + sum(first[156:]) + 8 * 32)
    return bytes(first) + (bytes(504) + b"\1" + bytes(7)) * number


CLAIMS = {
    "pax": lambda: header(tarfile.XHDTYPE, 3 << 30) + bytes(64 << 20),
    "global pax": lambda: header(tarfile.XGLTYPE, 3 << 30) + bytes(64 << 20),
    "long name": lambda: header(tarfile.GNUTYPE_LONGNAME, 3 << 30) + bytes(64 << 20),
    "long link": lambda: header(tarfile.GNUTYPE_LONGLINK, 3 << 30) + bytes(64 << 20),
    "behind a file": lambda: header(tarfile.REGTYPE, 0) + header(tarfile.XHDTYPE, 32 << 20)
    + bytes(32 << 20),
    "sparse": lambda: sparse_headers(1 << 16),
    "more than there is": lambda: header(tarfile.XHDTYPE, 10**15) + bytes(10240),
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("claim", CLAIMS)
def test_headers_that_claim_much_cost_nothing(tmp_path, claim, compressed):
    path = tmp_path / "release.tar"
    content = CLAIMS[claim]()
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    tracemalloc.start()
    with pytest.raises(UserError, match="a header claims more than 1 MiB"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_pipes_are_told_and_not_waited_for(directory, tmp_path):
    os.mkfifo(tmp_path / "pipe.tar.gz")
    with pytest.raises(UserError, match=r"pipe\.tar\.gz is a pipe or a device"):
        read(tmp_path / "pipe.tar.gz")
    os.mkfifo(directory / "a" / "zero.txt")
    assert read(directory, lambda name: name if "zero" not in name else None) == CONTENT
    with pytest.raises(UserError, match=r"zero\.txt is a pipe or a device"):
        read(directory)


# --- what a Mac or Windows adds, and files that are there twice

ADDED = ["__MACOSX/a/._one.txt", "a/._two.txt", "a/.DS_Store", "Thumbs.db", "b/desktop.ini",
         "$RECYCLE.BIN/x.txt", "a/Icon\r", "._a/x.txt"]  # fmt: skip


@pytest.mark.parametrize("form", ["directory", "tar", "zip"])
def test_what_file_managers_add_is_left_out_and_counted(directory, tmp_path, caplog, form):
    for name in ADDED:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"\0\5\x16\7")
    path = tmp_path / "release"
    if form == "directory":
        path = directory
    elif form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(directory.rglob("*")):
                archive.write(file, file.relative_to(directory))
    else:
        with tarfile.open(path, "w") as archive:
            archive.add(directory, "")
    caplog.set_level("INFO")
    assert read(path) == CONTENT
    assert f"{path}: 8 files that macOS or Windows added are left out" in caplog.text


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_a_file_that_is_there_twice_is_refused(directory, tmp_path, form):
    path = tmp_path / "release"
    names = ["a/one.txt", "a/two.txt", "./a/one.txt"]
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "text")
    else:
        for name in names:
            with tarfile.open(path, "a") as archive:  # as tar -r does
                archive.add(directory / name, name)
    with pytest.raises(UserError, match="release holds a/one.txt twice"):
        read(path)
    assert list(read(path, lambda name: name if "two" in name else None)) == ["a/two.txt"]


def test_two_files_that_are_the_same_part_are_refused(directory):
    (directory / "copy").mkdir()
    (directory / "copy" / "two.txt").write_text("2")
    with pytest.raises(UserError, match="holds copy/two.txt and a/two.txt, of which only one"):
        read(directory, lambda name: name.rpartition("/")[2])


def test_other_files_are_told(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="tar or zip"):
        read(tmp_path / "text")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "missing")


def test_a_release_without_the_files_looked_for_is_told(directory):
    with pytest.raises(NothingFoundError, match="raw holds no text"):
        read(directory, nothing)
