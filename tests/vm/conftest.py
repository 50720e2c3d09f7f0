# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual machines as fixtures, and the kernel's own log as a judge of every test."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "fleet"), str(HERE.parent / "apps")]

import live_patching  # noqa: E402
from live_patching import Signer  # noqa: E402
from rig import image, machine  # noqa: E402
from rig.machine import Machine, Spec  # noqa: E402

#: When the tests began, and which were not for want of time.
BEGUN = pytest.StashKey[float]()
NOT_BEGUN = pytest.StashKey[list[str]]()
Booter = Callable[[Spec], Machine]
#: The demonstration's bundles; the second redis one replaces a function of the first again.
RECIPES = {
    "redis": ("redis-cve-2026-25243", "redis-cve-2026-66373"),
    "memcached": ("memcached-meta-debug-exptime", "memcached-incr-large-number"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """--kernels: which of setup/kernels' series, with commas; the machine's own by default.

    --begin-within: seconds after which no further test is begun; those left are named. 0: all are.
    """
    parser.addoption("--kernels", default=image.OWN_SERIES)
    parser.addoption("--begin-within", type=float, default=0, metavar="SECONDS")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BEGUN] = time.monotonic()
    config.stash[NOT_BEGUN] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A slow host's machines are slower still: a part of the tests, told from all of them."""
    limit = item.config.getoption("--begin-within")
    if limit and time.monotonic() - item.config.stash[BEGUN] > limit:
        item.config.stash[NOT_BEGUN].append(item.nodeid)
        pytest.skip(f"not begun: {limit:.0f} s are over")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The line that a runner repeats."""
    if left := config.stash[NOT_BEGUN]:
        terminalreporter.write_line(f"not begun for want of time: {len(left)}: {' '.join(left)}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument ``series`` runs once for each kernel."""
    if "series" in metafunc.fixturenames:
        series = metafunc.config.getoption("--kernels").split(",")
        metafunc.parametrize("series", series, scope="session")


@pytest.fixture(scope="session")
def boot() -> Iterator[Booter]:
    """boot(Spec(...)) -> a machine of that kind, the same one each time; one at a time is up.

    Two processors bear one machine: another kind takes the place of the one before.
    """
    if os.geteuid():
        pytest.skip("making images needs root")
    with contextlib.ExitStack() as stack:
        up: dict[Spec, Machine] = {}

        def booted(spec: Spec) -> Machine:
            if spec not in up or not up[spec].alive():
                stack.close()
                up.clear()
                name = f"test-{os.getpid()}"
                up[spec] = stack.enter_context(machine.running(spec, name))
            return up[spec]

        yield booted


def module_for(series: str) -> pathlib.Path:
    """The module built for the series' kernel, by kmod/check."""
    release = subprocess.run(
        [TOP / "setup" / "kernels", "release", series], check=True, capture_output=True, text=True
    ).stdout.strip()
    built = TOP / "kmod" / ".build" / release / "wfpatch.ko"
    sources = [*(TOP / "kmod").glob("*.[ch]"), *(TOP / "kmod").glob("include/uapi/*.h")]
    newest = max(file.stat().st_mtime for file in sources)
    if not built.exists() or built.stat().st_mtime < newest:
        subprocess.run(["make", "-C", TOP / "kmod", "build", f"SERIES={series}"], check=True)
    return built


def programs() -> list[pathlib.Path]:
    """The programs that ask the uapi."""
    place = TOP / "kmod" / ".build"
    place.mkdir(exist_ok=True)
    subprocess.run(["make", "--silent", "-C", TOP / "kmod", "programs", f"OUT={place}"], check=True)
    return [place / "selftest", place / "stress"]


def with_service(made: Machine, series: str) -> Machine:
    """The machine with the kernel service loaded anew and the test programs at hand."""
    bring(made, module_for(series))
    return made


def bring(made: Machine, module: pathlib.Path) -> None:
    """Load a module anew, and bring the test programs."""
    made.run("grep -q '^wfpatch ' /proc/modules && rmmod wfpatch || true")
    made.put(module, "/root/wfpatch.ko")
    for program in programs():
        made.put(program, f"/root/{program.name}")
    made.run("insmod /root/wfpatch.ko && udevadm settle")
    # Programs of four thousand threads are started by way of it.
    made.run("systemctl set-property --runtime ssh.service TasksMax=infinity")


@pytest.fixture
def vm(boot: Booter, series: str) -> Iterator[Machine]:
    """A machine with the kernel service, with two processors; its kernel must have no complaint."""
    made = with_service(boot(Spec(kernel=series)), series)
    with quiet_kernel(made):
        yield made


@contextlib.contextmanager
def quiet_kernel(made: Machine) -> Iterator[None]:
    """Fails when the kernel says something in the block that it should not have to say."""
    before = len(made.alarms())
    yield
    assert made.alarms()[before:] == []
    assert made.alive(), made.console.read_text(errors="replace")[-3000:]


@pytest.fixture(scope="session")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return live_patching.make_signer(tmp_path_factory.mktemp("signer"))


@pytest.fixture(scope="session")
def bundles(signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("bundles")
    made: dict[str, list[str]] = {}
    for service, recipes in RECIPES.items():
        for recipe in recipes:
            bundle, said = live_patching.build(recipe, folder, signer)
            assert bundle, said
            made.setdefault(service, []).append(str(bundle))
    return made
