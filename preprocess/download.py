"""Download the raw file of a data set, or the published data.

    python -m preprocess download imdb-4000      into lra_data/raw/, where its preparation looks
    python -m preprocess download mega           the published lra.zip, all six sets prepared
    python -m preprocess download cifar10 --from https://mirror.example/

A download that broke off goes on where it stopped. Size and SHA-256 are compared with the published
ones where these are known; where they are not, the SHA-256 is written down in
`lra_data/raw/SHA256SUMS`. Proxies are taken from the usual variables (`https_proxy`).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import re
import shutil
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests

from fairseq_csp.datasets import DATASETS, IMAGE_SETS, MEGA_RELEASE, RAW_DIRECTORY, Download
from fairseq_csp.errors import UserError
from preprocess.archives import NothingFoundError, RawRelease, sha256
from preprocess.directories import PUBLISHED, new_directory
from preprocess.progress import progress

MEGA = "mega"
SUMS_FILE = "SHA256SUMS"
ATTEMPTS = 5  # without a byte more
WAIT = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = (10.0, 60.0)  # seconds: to connect, and without a byte

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    sets = DATASETS | IMAGE_SETS
    names = [name for name, data_set in sets.items() if data_set.download is not None]
    parser.add_argument("name", choices=[*names, MEGA], metavar="NAME", help="; ".join(names))
    parser.add_argument(
        "--from",
        dest="mirror",
        metavar="URL",
        help="another address of the file, or of a directory that has it (ends with /)",
    )
    parser.add_argument(
        "--raw-dir",
        type=Path,
        default=RAW_DIRECTORY,
        metavar="DIR",
        help="where the file goes (default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help=f"with {MEGA}: replace existing sets"
    )


def run(arguments: argparse.Namespace) -> None:
    """Download one file, and unpack the published data."""
    release = MEGA_RELEASE
    if arguments.name != MEGA:
        release = (DATASETS | IMAGE_SETS)[arguments.name].download
    address = arguments.mirror or release.address
    if address.endswith("/"):
        address += release.file
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).netloc:
        raise UserError(f"--from {address}: not an address that begins with http:// or https://")
    path = fetch(release, address, arguments.raw_dir)
    sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")
    if arguments.name == MEGA:
        unpack(path, overwrite=arguments.overwrite)


def fetch(release: Download, address: str, directory: Path) -> Path:
    """Download a file, or go on with a download of it, and compare it with what is known of it.

    Args:
        release: What is known of the file.
        address: Where it is taken from.
        directory: Where it goes.

    Returns:
        Its path.

    Raises:
        UserError: it cannot be had there, or is another than the published one.
    """
    path = directory / release.file
    directory.mkdir(parents=True, exist_ok=True)
    if path.exists():
        logger.info(f"{path} is there already")
        _compare(path, path, release, "move it away, and the same command downloads it")
        return path
    partial = directory / f".{release.file}.partial"
    with open(partial, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process downloads {path}: wait for it, or end it") from None
        except OSError:  # this file system has no locks
            pass
        note = directory / f".{release.file}.partial.json"
        try:
            _Transfer(release, address, partial, note).run()
        except KeyboardInterrupt:
            logger.info(f"{partial.stat().st_size:,} bytes are kept: the same command goes on")
            raise
        try:
            _compare(partial, path, release, "name another address with --from")
        except UserError:
            partial.unlink()
            note.unlink(missing_ok=True)
            raise
        partial.rename(path)
        note.unlink(missing_ok=True)
    return path


class _Transfer:
    """Receives a file through pooch and requests, in as many attempts as it takes.

    Args:
        release: What is known of the file.
        address: Where it is taken from.
        partial: What was received of it.
        note: Which file on which server that is a part of.
    """

    def __init__(self, release: Download, address: str, partial: Path, note: Path) -> None:
        self._release = release
        self._address = address
        self._note = note
        self._file = open(partial, "r+b")  # noqa: SIM115 (closed by run)
        self._shown = progress(what=f"downloading {release.file}", unit="B", scale=True)
        self._total = release.bytes

    def run(self) -> None:
        """Receive the file.

        Raises:
            UserError: the server has no such file, sends something else, or breaks off again and
                again; what was received is kept.
        """
        with self._file, self._shown:
            failures = most = 0
            while True:
                before = self._file.seek(0, 2)
                if before == self._release.bytes:
                    return
                try:
                    self._receive(before)
                    return
                except requests.HTTPError as error:
                    status = error.response.status_code
                    if status < 500 and status not in (408, 429):
                        raise UserError(
                            f"{self._address}: the server answers {status} "
                            f"{error.response.reason}; name another address with --from"
                        ) from error
                    reason = f"the server answers {status}"
                except (requests.TooManyRedirects, requests.exceptions.InvalidURL) as error:
                    raise UserError(f"{self._address} leads nowhere ({error})") from error
                except requests.RequestException as error:
                    reason = _reason(error)
                # what was begun anew counts as more once it gets further than ever before
                failures = 0 if self._file.tell() > max(most, before) else failures + 1
                most = max(most, before, self._file.tell())
                if failures == ATTEMPTS:
                    raise UserError(
                        f"{self._address} cannot be downloaded ({reason}); {self._file.tell():,} "
                        "bytes are kept, and the same command goes on from there"
                    )
                logger.info(f"{self._address}: {reason}; going on at {self._file.tell():,} bytes")
                time.sleep(WAIT * 2**failures)

    def _receive(self, start: int) -> None:
        headers = {"Accept-Encoding": "identity"}
        noted = self._noted()
        if start and noted is not None:
            headers["Range"] = f"bytes={start}-"
            if isinstance(noted["etag"], str):
                headers["If-Range"] = noted["etag"]
        download = pooch.HTTPDownloader(
            chunk_size=1 << 14,  # where it breaks off, this much is lost
            timeout=TIMEOUT,
            headers=headers,
            hooks={"response": self._begin},
        )
        download(self._address, self, None)
        received = self._file.tell()
        if self._total is not None and received < self._total:
            raise requests.ConnectionError(f"{received:,} of {self._total:,} bytes were sent")

    def _noted(self) -> dict | None:
        """Return what was noted of the file that a part was received of; None: begin anew."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            if note["address"] == self._address:
                return {"etag": note["etag"], "total": note["total"]}
        except (OSError, ValueError, KeyError, TypeError):
            pass
        # of which server it was is no matter where the SHA-256 will tell
        return {"etag": None, "total": self._release.bytes} if self._release.sha256 else None

    def _begin(self, response: requests.Response, **_: object) -> None:
        """Look at an answer before its content is read."""
        if response.is_redirect or not (response.ok or response.status_code == 416):
            return
        if "text/html" in response.headers.get("Content-Type", ""):
            raise UserError(
                f"{self._address} is a web page and not {self._release.file}: open it in a "
                "browser, or name another address with --from"
            )
        start = self._file.seek(0, 2)
        sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        length = response.headers.get("Content-Length", "")
        goes_on = response.status_code == 206 and sent is not None and int(sent[1]) == start
        if goes_on and (self._noted() or {}).get("total") in (None, int(sent[2])):
            total = int(sent[2])
        else:
            # all of it, or what does not go on with the part that is there
            self._file.seek(0)
            self._file.truncate()
            if response.status_code != 200:
                raise requests.ConnectionError("the server does not go on with the part")
            total = int(length) if length.isdecimal() else None
        self._total = self._release.bytes or total
        etag = response.headers.get("ETag", "W/")
        etag = response.headers.get("Last-Modified") if etag.startswith("W/") else etag
        note = {"address": self._address, "etag": etag, "total": self._total}
        self._note.write_text(json.dumps(note), encoding="utf-8")
        self._shown.total = self._total
        self._shown.update(self._file.tell() - self._shown.n)

    def write(self, content: bytes) -> None:
        """Append what was received; pooch calls it."""
        if self._release.bytes and self._file.tell() + len(content) > self._release.bytes:
            self._file.truncate(0)
            raise UserError(
                f"{self._address} sends more than the {self._release.bytes:,} bytes that "
                f"{self._release.file} has; name another address with --from"
            )
        self._file.write(content)
        self._shown.update(len(content))

    def flush(self) -> None:
        """Write out what was appended; pooch calls it."""
        self._file.flush()


def _reason(error: BaseException) -> str:
    """Return the innermost reason of what requests and urllib3 wrap several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__


def _compare(content: Path, path: Path, release: Download, what_to_do: str) -> None:
    """Compare a file with the published one, or with what was written down of it.

    Args:
        content: Where it is.
        path: Where it is or will be.
        release: What is known of it.
        what_to_do: Ends the message where it is another.

    Raises:
        UserError: it is another.
    """
    size = content.stat().st_size
    if release.bytes and size != release.bytes:
        raise UserError(
            f"{path} has {size:,} bytes, the published one {release.bytes:,}: {what_to_do}"
        )
    sums = path.parent / SUMS_FILE
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    known = release.sha256 or recorded.get(path.name)
    found = sha256(content)
    if known and found != known:
        whose = "the published one" if release.sha256 else f"that in {sums}"
        raise UserError(f"{path} has SHA-256 {found}, {whose} is {known}: {what_to_do}")
    if not known:
        if not zipfile.is_zipfile(content) and not tarfile.is_tarfile(content):
            raise UserError(f"{path} is no archive that can be read: {what_to_do}")
        logger.info(f"{path}: the published SHA-256 is not known; {found} is noted in {sums}")
        with open(sums, "a", encoding="utf-8") as file:
            file.write(f"{found}  {path.name}\n")


def unpack(archive: Path, *, overwrite: bool) -> None:
    """Unpack the published data: each set that the archive holds, to its own directory.

    Raises:
        UserError: the archive is damaged, or holds no set.
    """
    found = False
    for name, data_set in DATASETS.items():
        if data_set.directory.exists() and not overwrite:
            logger.info(f"{name}: {data_set.directory} is there already and left as it is")
            found = True
            continue
        pattern = re.compile(rf"(?:^|/){re.escape(name)}/([^/]+/[^/]+)$")

        def part(member: str, pattern: re.Pattern = pattern) -> str | None:
            match = pattern.search(member)
            return match[1] if match and match[1] in PUBLISHED else None

        try:
            with new_directory(data_set.directory, overwrite=overwrite) as directory:
                for member, file in RawRelease(archive).files(part, f"{name}/"):
                    target = directory / part(member)
                    target.parent.mkdir(exist_ok=True)
                    with open(target, "wb") as copy:
                        shutil.copyfileobj(file, copy, 1 << 20)
        except NothingFoundError as error:
            logger.info(f"{name}: {error}")
            continue
        found = True
        sys.stdout.write(f"{name}: unpacked to {data_set.directory}\n")
    if not found:
        raise UserError(f"{archive} holds none of {', '.join(DATASETS)}")
