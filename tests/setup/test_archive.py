# SPDX-License-Identifier: GPL-3.0-or-later
"""setup/archive: which entries it takes, what it keeps, what it says when a version is missing."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import textwrap
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
ARCHIVE = TOP / "setup" / "archive"


@pytest.fixture
def archive(monkeypatch):
    """The script as a module."""
    loader = SourceFileLoader("archive_script", str(ARCHIVE))
    spec = importlib.util.spec_from_loader("archive_script", loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "archive_script", module)  # dataclasses look there
    loader.exec_module(module)
    return module


@pytest.fixture
def machine(archive, tmp_path, monkeypatch):
    """machine(**files) -> None: an apt configuration of these files, on Debian 12."""
    etc = tmp_path / "etc"
    (etc / "sources.list.d").mkdir(parents=True)
    release = tmp_path / "os-release"
    release.write_text('ID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME="Debian 12"\n')
    monkeypatch.setattr(archive, "ETC", etc)
    monkeypatch.setattr(archive, "OS_RELEASE", release)

    def configure(files):
        for name, text in files.items():
            (etc / name).write_text(textwrap.dedent(text))

    return configure


def test_one_line_entries(archive, machine):
    machine(
        {
            "sources.list": """\
            # deb http://mirror.test/debian bookworm main
            deb http://mirror.test/debian bookworm main contrib # the base
            deb [arch=amd64,i386 signed-by=/k.gpg] http://mirror.test/debian bookworm-updates main
            deb-src http://mirror.test/debian bookworm main
            deb http://mirror.test/debian-security bookworm-security main
            deb http://mirror.test/debian trixie main
            deb http://else.test/debian bookworm stable
            deb cdrom:[Debian]/ bookworm main
            """
        }
    )
    assert [(e.uri, e.suite, e.components) for e in archive.entries()] == [
        ("http://mirror.test/debian", "bookworm", "main contrib"),
        ("http://mirror.test/debian", "bookworm-updates", "main"),
        ("http://mirror.test/debian-security", "bookworm-security", "main"),
    ]
    assert archive.entries()[1].options == (
        ("Architectures", "amd64 i386"),
        ("Signed-By", "/k.gpg"),
    )
    assert archive.mirror() == "http://mirror.test/debian"


def test_deb822_entries(archive, machine):
    machine(
        {
            "sources.list.d/debian.sources": """\
            Types: deb deb-src
            # a remark in the middle
            URIs: http://one.test/debian/ http://two.test/debian
            Suites: bookworm
             bookworm-updates
            Components: main
            Signed-By:
             -----BEGIN PGP PUBLIC KEY BLOCK-----
             .
             abc
             -----END PGP PUBLIC KEY BLOCK-----

            Types: deb
            URIs: http://one.test/debian-security
            Suites: bookworm-security
            Components: main
            Enabled: no

            Types: deb-src
            URIs: http://one.test/debian
            Suites: bookworm-proposed-updates
            Components: main
            """,
            "sources.list.d/other.sources.off": "Types: deb\nURIs: http://x\nSuites: bookworm\n",
        }
    )
    found = archive.entries()
    assert [(e.uri, e.suite) for e in found] == [
        ("http://one.test/debian/", "bookworm"),
        ("http://one.test/debian/", "bookworm-updates"),
        ("http://two.test/debian", "bookworm"),
        ("http://two.test/debian", "bookworm-updates"),
    ]
    # Written again it is the same entry, with the sources besides, and the key as it was folded.
    again = list(archive.read_deb822(found[0].stanza()))
    assert again == [found[0]]
    assert found[0].stanza().startswith("Types: deb deb-src\n")
    assert "\n .\n abc\n" in found[0].stanza()
    assert archive.mirror() == "http://one.test/debian"


def test_mirror_list_file(archive, machine, tmp_path):
    listed = tmp_path / "mirrors.list"
    listed.write_text("http://listed.test/debian\tpriority:1\nhttp://second.test/debian\n")
    machine({"sources.list": f"deb mirror+file:{listed} bookworm main\n"})
    assert archive.mirror() == "http://listed.test/debian"


def test_no_entry_is_an_error(archive, machine):
    machine({"sources.list": "deb http://else.test/debian focal main\n"})
    with pytest.raises(archive.ArchiveError, match="no entry of Debian's archive for bookworm"):
        archive.entries()


def run(cache, *words, **environment):
    return subprocess.run(
        [str(ARCHIVE), *map(str, words)],
        env={**os.environ, "WFPATCH_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """An archive's cache of its own, with the indices fetched."""
    place = tmp_path_factory.mktemp("cache")
    place.chmod(0o755)
    done = run(place, "update")
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def version(cache):
    """A version of a small package that the archive has today."""
    conf = cache / "archive" / "apt.conf"
    told = subprocess.run(
        ["apt-cache", "-c", str(conf), "madison", "hello"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return next(line.split("|")[1].strip() for line in told.splitlines() if "Packages" in line)


def machine_configuration():
    """What must not change: the machine's apt configuration and indices, by content."""
    digest = hashlib.sha256()
    for directory in ("/etc/apt", "/var/lib/apt/lists"):
        for path in sorted(Path(directory).rglob("*")):
            if path.is_file() and path.name != "lock":
                digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


def test_download_keeps_by_content(cache, version, tmp_path):
    before = machine_configuration()
    done = run(cache, "download", f"hello={version}", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.parent == tmp_path / "one"
    assert path.read_bytes().startswith(b"!<arch>\ndebian-binary")
    assert machine_configuration() == before

    # Without an archive to ask: apt's lists are gone and no mirror answers.
    etc = tmp_path / "etc"
    (etc / "sources.list.d").mkdir(parents=True)
    (etc / "sources.list").write_text("deb http://127.0.0.1:9/debian bookworm main\n")
    again = run(cache, "download", f"hello={version}", tmp_path / "two", WFPATCH_APT_ETC=str(etc))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()

    # A damaged file is fetched anew rather than handed out.
    (kept,) = (cache / "sha256").rglob(path.name)
    good = path.read_bytes()
    kept.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    mended = run(cache, "download", f"hello={version}", tmp_path / "three")
    assert mended.returncode == 0, mended.stderr
    assert (tmp_path / "three" / path.name).read_bytes() == good


def test_source_lists_the_description_first(cache, version, tmp_path):
    done = run(cache, "source", f"hello={version}", tmp_path)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert paths[0].suffix == ".dsc"
    assert len(paths) >= 3
    assert all(path.is_file() for path in paths)


def test_missing_version_names_those_there_are(cache, version, tmp_path):
    done = run(cache, "download", "hello=0.0-none", tmp_path)
    assert done.returncode == 1
    assert "does not offer version 0.0-none" in done.stderr
    assert version in done.stderr
    assert not list(tmp_path.iterdir())
    done = run(cache, "download", "no-such-package-wfpatch=1", tmp_path)
    assert done.returncode == 1
    assert "no such package" in done.stderr


def test_spec_without_version_is_refused(cache, tmp_path):
    done = run(cache, "download", "hello", tmp_path)
    assert done.returncode == 1
    assert "expected PACKAGE=VERSION" in done.stderr


def test_configure_writes_into_the_root_only(archive, machine, tmp_path):
    key = tmp_path / "company.gpg"
    key.write_bytes(b"key")
    machine(
        {
            "sources.list": f"""\
            deb [signed-by={key}] http://mirror.test/debian bookworm main
            """
        }
    )
    root = tmp_path / "root"
    for directory in ("etc/apt/sources.list.d", "etc/apt/apt.conf.d"):
        (root / directory).mkdir(parents=True)
    (root / "etc/apt/sources.list").write_text("deb http://stale.test/debian bookworm main\n")
    archive.configure(root, "bookworm")
    text = (root / "etc/apt/sources.list.d/debian.sources").read_text()
    assert "URIs: http://mirror.test/debian\n" in text
    assert not (root / "etc/apt/sources.list").exists()
    assert (root / str(key)[1:]).read_bytes() == b"key"
    archive.configure(root, "bullseye")
    text = (root / "etc/apt/sources.list.d/debian.sources").read_text()
    assert "Suites: bullseye\n" in text
    assert "bookworm" not in text
