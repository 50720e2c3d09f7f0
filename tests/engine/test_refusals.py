# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals through the command line: each by its reason, with the process as it was.

What is refused at plan time leaves the memory of the process byte for byte as it was; what fails
later ends in a state that has a name, and a later run completes or reverts it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import sample_patch
import wfpatch.plan
from proof.backends import ptrace_only
from proof.bundles import SignedStore, make_key
from wfpatch.backend import ptrace_requests
from wfpatch.cli import EXIT_OF_REASON
from wfpatch.host import Host, Options
from wfpatch.maps import MemoryMap
from wfpatch.region_header import MAGIC
from wfpatch.strict_json import canonical

NEW_STEP = """
int step(int number);
__attribute__((noinline)) int step(int number)
{ __asm__ volatile("" : "+r"(number)); return number + 2; }
"""
NEW_OTHER = """
int other(int number);
__attribute__((noinline)) int other(int number)
{ __asm__ volatile("" : "+r"(number)); return number + 20; }
"""


#: The kernel writes into a thread's rseq area whenever it has been on another processor, after a
#: stop too: that is no change of ours, so the programs have none.
QUIET = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}


class World:
    """A running program, a store, and patches for the program."""

    def __init__(self, path, running, directory):
        self.path = path
        self.running = running
        self.pid = running.pid
        self.store = SignedStore(directory)

    def elf(self, source=NEW_STEP, names=("step",), **more):
        return sample_patch.build(self.path, source, list(names), **more)

    def add(self, patch_id="fix", source=NEW_STEP, names=("step",), build=None, **fields):
        return self.store.add(patch_id, self.elf(source, names, **(build or {})), **fields)

    def run(self, *words, **more):
        return self.store.run(*words, "--pid", self.pid, **more)

    def answers(self, *wanted):
        """What step(1) and other(1) give."""
        return self.running.ask("call 1") == " ".join(map(str, wanted))

    def memory(self):
        """All that the process has mapped, and how."""
        found = {}
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            for mapping in MemoryMap.read(self.pid):
                content = b""
                if mapping.readable and not mapping.path.startswith("[v"):
                    content = os.pread(memory.fileno(), mapping.size, mapping.start)
                found[mapping.start, mapping.end, mapping.perms, mapping.path] = content
        return found

    def settled(self):
        """Its memory once it has come to rest."""
        deadline = time.monotonic() + 20
        before, now = None, self.memory()
        while before != now:
            assert time.monotonic() < deadline, "the program does not come to rest"
            time.sleep(0.05)
            before, now = now, self.memory()
        return now

    def refused(self, reason, *words, tells="", store=None):
        """The command is refused for that reason, and nothing changed."""
        before = self.settled()
        run = (store or self.store).run(*words)
        assert run.result is not None, run
        assert run.result["reason"] == reason, run
        assert run.code == EXIT_OF_REASON.get(reason, 3), run
        assert run.result["changed"] is False
        assert tells in run.result["message"], run
        assert self.memory() == before
        return run

    def both_refused(self, reason, *ids, tells="", options=()):
        """By plan and by apply, in the same words."""
        one = self.refused(reason, "plan", *ids, "--pid", self.pid, *options, tells=tells)
        other = self.refused(reason, "apply", *ids, "--pid", self.pid, *options, tells=tells)
        assert one.result["message"] == other.result["message"]
        return other


@pytest.fixture
def world(program, start, tmp_path):
    path = program("refused")
    return World(path, start(path, env=QUIET), tmp_path)


def test_what_is_refused_below_is_done_otherwise(world):
    """Every test below differs from this in one thing."""
    world.add()
    assert world.answers(2, 11)
    run = world.run("apply", "fix")
    assert (run.code, run.result["state"], run.result["changed"]) == (0, "patched", True), run
    assert world.answers(3, 11)
    # Applied already: success without a change.
    before = world.memory()
    again = world.run("apply", "fix")
    assert (again.code, again.result["state"], again.result["changed"]) == (0, "patched", False)
    assert world.memory() == before
    assert world.run("revert", "fix").code == 0
    assert world.answers(2, 11)


# The bundle


def test_an_unsigned_bundle(world):
    world.add()
    (world.store.folder("fix") / "bundle.json.sig").unlink()
    world.both_refused("signature_missing", "fix", tells="bundle.json.sig")


def test_a_signature_of_a_stranger(world, tmp_path):
    world.add()
    data = (world.store.folder("fix") / "bundle.json").read_bytes()
    world.store.write_manifest("fix", data, key=make_key(tmp_path / "stranger"))
    world.both_refused("signer_unknown", "fix", tells="allowed_signers")


def test_no_allowed_signer(world):
    world.add()
    world.store.signers.unlink()
    world.both_refused("signer_unknown", "fix", tells="no signer is allowed")


def test_an_altered_manifest(world):
    world.add()
    path = world.store.folder("fix") / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b"test patch", b"evil patch"))
    world.both_refused("signature_invalid", "fix")


def test_a_signature_in_another_namespace(world):
    world.add()
    folder = world.store.folder("fix")
    (folder / "bundle.json.sig").unlink()
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", world.store.key]
        + [folder / "bundle.json"],
        check=True,
        capture_output=True,
    )
    world.both_refused("signature_invalid", "fix")


def test_an_altered_patch_elf(world):
    world.add()
    path = world.store.folder("fix") / "patch.elf"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    world.both_refused("bundle_altered", "fix", tells="sha256")


def test_a_manifest_of_another_schema(world):
    world.add(schema=2)
    world.both_refused("manifest_invalid", "fix", tells="schema")


@pytest.mark.parametrize("cut", [0, 17, 64, 700])
def test_a_truncated_patch_elf(world, cut):
    elf = world.elf()
    store = world.store
    meta = store.add("fix", elf)
    folder = store.folder(meta)
    data = json.loads((folder / "bundle.json").read_bytes())
    (folder / "patch.elf").write_bytes(elf[:cut])
    import hashlib

    data["artifact"].update(sha256=hashlib.sha256(elf[:cut]).hexdigest(), size=max(cut, 1))
    store.write_manifest("fix", canonical(data))
    reason = "patch_elf_malformed" if cut else "bundle_altered"
    world.both_refused(reason, "fix")


def test_a_newer_patch_elf(world):
    world.add(build={"meta_overrides": {"format": 2}})
    world.both_refused("patch_elf_unsupported", "fix", tells="2")


def test_a_patch_for_another_build(world):
    other = "ab" * 20
    world.add(
        build={"meta_overrides": {"object": {**_object(world), "build_ids": [other]}}},
    )
    world.both_refused("build_id_mismatch", "fix", tells=other)


def _object(world):
    from proof.bundles import patch_meta

    return patch_meta(world.elf())["object"]


def test_an_unsupported_relocation(world):
    """R_X86_64_32S, which a position-independent program has no use for."""
    elf = bytearray(
        world.elf("int other(int);\n" + NEW_STEP.replace("number + 2", "other(number)"))
    )
    changed = _change_relocation(elf, 11)
    world.store.add("fix", bytes(changed))
    world.both_refused("unsupported_relocation", "fix", tells="R_X86_64_32S")


def _change_relocation(elf, kind):
    """The ELF with the type of its first relocation against code changed."""
    import io

    from elftools.elf.elffile import ELFFile

    for section in ELFFile(io.BytesIO(bytes(elf))).iter_sections():
        if section["sh_type"] == "SHT_RELA" and section.name.startswith(".rela.text"):
            at = section["sh_offset"] + 8
            elf[at : at + 4] = kind.to_bytes(4, "little")
            return elf
    raise AssertionError("no relocation")


def test_a_symbol_that_nobody_has(world):
    world.add(source="int nobody(int);\n" + NEW_STEP.replace("number + 2", "nobody(number)"))
    world.both_refused("symbol_not_found", "fix", tells="nobody")


def test_an_unknown_patch(world):
    world.refused("usage", "apply", "nosuch", "--pid", world.pid, tells="nosuch")


# The process


def test_no_process(world):
    world.add()
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        run = world.refused("no_matching_process", "apply", "fix", "--pid", sleeper.pid)
        assert str(sleeper.pid) in run.result["message"]
        world.refused("no_matching_process", "plan", "fix", "--pid", sleeper.pid)
    finally:
        sleeper.kill()
        sleeper.wait()


def test_other_old_bytes(world):
    """Another tool has changed the function: the last byte of what is replaced."""
    from elftools.elf.elffile import ELFFile

    world.add()
    with open(world.path, "rb") as file:
        (symbol,) = ELFFile(file).get_section_by_name(".symtab").get_symbol_by_name("step")
        address, size = symbol["st_value"], symbol["st_size"]
    start = min(m.start for m in MemoryMap.read(world.pid) if m.path == str(world.path))
    with open(f"/proc/{world.pid}/mem", "r+b", buffering=0) as memory:
        at = start + address + size - 1
        byte = os.pread(memory.fileno(), 1, at)
        os.pwrite(memory.fileno(), bytes([byte[0] ^ 1]), at)
        world.both_refused("old_code_mismatch", "fix", tells="step")
        os.pwrite(memory.fileno(), byte, at)
    assert world.run("apply", "fix").code == 0


def test_a_program_that_uses_gs(world):
    world.add()
    assert world.running.ask("gs") == "0"
    # Reading a GS base takes a stop, which a plan does not do.
    run = world.refused("gs_in_use", "apply", "fix", "--pid", world.pid, tells="0x123000")
    assert str(world.pid) in run.result["message"]


@ptrace_only
def test_a_traced_process(world):
    world.add()
    tracer = os.fork()
    if tracer == 0:
        ptrace_requests.seize(world.pid)
        time.sleep(60)
        os._exit(0)
    try:
        deadline = time.monotonic() + 10
        while f"TracerPid:\t{tracer}\n" not in _status(world.pid):
            assert time.monotonic() < deadline
        world.both_refused("already_traced", "fix", tells=str(tracer))
    finally:
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)
    assert world.run("apply", "fix").code == 0


def _status(pid):
    with open(f"/proc/{pid}/status") as file:
        return file.read()


def test_without_permission(world):
    """An applier that is not root, and may read the store."""
    world.add()
    script = (
        "import os, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from wfpatch.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for place in (world.store.path, *world.store.path.rglob("*"), world.store.signers):
        place.chmod(0o755 if place.is_dir() else 0o644)
    for parent in world.store.path.parents:
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    before = world.memory()
    words = world.store.command("plan", "fix", "--pid", world.pid)[3:]
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, *words], capture_output=True, text=True
    )
    assert json.loads(done.stdout)["reason"] == "no_permission", done.stdout + done.stderr
    assert done.returncode == 3
    assert world.memory() == before


@pytest.fixture
def filtered(program, start, tmp_path):
    """filtered(kind): a program under that filter, and a patch for it."""

    def make(kind):
        path = program("seccomp_filter", "-g")
        source = "static void *sleeper(void *a);\nstatic void *sleeper(void *a) { return a; }\n"
        source += "void *keep(void) { return (void *)sleeper; }\n"
        world = World(path, start(path, kind, env=QUIET), tmp_path)
        world.add(source=source, names=("sleeper",))
        return world

    return make


@pytest.mark.parametrize(
    ("kind", "fsgsbase", "refused"),
    [
        ("errno-sigaltstack", True, True),
        ("errno-arch_prctl", True, False),
        ("errno-arch_prctl", False, True),
        ("allow", False, False),
    ],
)
def test_a_filter_that_forbids_what_the_stub_calls(filtered, monkeypatch, kind, fsgsbase, refused):
    """In a thread itself: sigaltstack, and arch_prctl where the processor has no FSGSBASE."""
    world = filtered(kind)
    if not fsgsbase:
        monkeypatch.setattr(wfpatch.plan, "has_fsgsbase", lambda _: False)
    host = Host(world.store.store())
    report = host.plan(["fix"], Options(pids=(world.pid,))).processes[0]
    assert report.reason == ("seccomp_forbids" if refused else None), report
    if refused:
        assert kind.partition("-")[2] in report.message
        report = host.plan(["fix"], Options(pids=(world.pid,), policy="global")).processes[0]
        assert report.reason is None, "a global switch needs no call of the stub's"


@pytest.mark.parametrize("kind", ["errno-mmap", "kill-mmap"])
def test_a_filter_that_forbids(filtered, kind):
    world = filtered(kind)
    world.both_refused("seccomp_forbids", "fix", tells="mmap")
    assert world.running.process.poll() is None


def test_process_one(world):
    """Of its pid namespace: patched only when asked for."""
    world.add()
    store = world.store
    command = store.command("apply", "fix", "--pid", 1)
    inner = (
        "mount -t proc proc /proc; "
        f"(sleep 1; {' '.join(command)}; echo code $?; kill -9 -1) </dev/null & "
        f"exec {world.path} < <(sleep 60)"
    )
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--kill-child", "bash", "-c", inner],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    assert json.loads(line)["reason"] == "is_init", done.stdout
    assert "code 3" in done.stdout


# Policies


def test_a_program_that_switches_stacks(program, start, tmp_path):
    path = program("refused", "-DSTACKS")
    world = World(path, start(path), tmp_path)
    world.add(stack_switching="unknown")
    world.both_refused("stack_switching", "fix", tells="swapcontext")
    world.add("stated", stack_switching="none")
    assert world.run("apply", "stated").code == 0


def test_declared_points(world):
    world.add()
    world.both_refused("policy_unsupported", "fix", options=("--policy", "points"))


def test_no_entry_could_ever_migrate(world):
    world.add(build={"overrides": {"step": {"migrate": "never"}}})
    world.both_refused("auto_impossible", "fix", tells="global")
    assert world.run("apply", "fix", "--policy", "global").code == 0
    assert world.answers(3, 11)


def test_a_backend_that_is_not_there(world):
    world.add()
    world.refused("backend_unavailable", "apply", "fix", "--pid", world.pid, "--backend", "kernel")


# What is in force


def test_a_missing_requirement(world):
    world.add("base")
    world.add("more", NEW_OTHER, ("other",), requires=["base"])
    world.both_refused("required_patch_missing", "more", tells="base")
    assert world.run("apply", "more", "base").code == 0
    assert world.answers(3, 21)
    world.refused("still_required", "revert", "base", "--pid", world.pid, tells="more")
    assert world.run("revert", "more", "base").code == 0
    assert world.answers(2, 11)


@pytest.mark.parametrize("named_by", ["the new one", "the one in force"])
def test_a_conflict(world, named_by):
    first, second = ("second", "first") if named_by == "the new one" else ("first", "second")
    conflicts = {first: [], second: [first]}
    if named_by == "the one in force":
        conflicts = {first: [second], second: []}
    world.add(first, conflicts=conflicts[first])
    world.add(second, NEW_OTHER, ("other",), conflicts=conflicts[second])
    assert world.run("apply", first).code == 0
    world.both_refused("conflict", second, tells=first)


def test_a_superseded_patch(world):
    world.add("old", NEW_OTHER, ("other",))
    world.add("new", supersedes=["old"])
    assert world.run("apply", "new").code == 0
    world.both_refused("superseded", "old", tells="new")
    assert world.run("revert", "new").code == 0
    assert world.run("apply", "old").code == 0
    # The other way round it is what superseding is for.
    assert world.run("apply", "new").code == 0
    assert world.answers(3, 21)


def test_another_applier(world):
    world.add()
    world.store.path.mkdir(exist_ok=True)
    with open(world.store.path / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        world.refused("busy", "apply", "fix", "--pid", world.pid, tells=str(os.getpid()))
        world.refused("busy", "--wait", 1, "revert", "fix", "--pid", world.pid)
    assert world.run("apply", "fix").code == 0


def test_an_applier_that_was_killed(world):
    """Its child had the lock too, until it executes ssh-keygen: that is waited for."""
    world.add()
    world.store.path.mkdir(exist_ok=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    child = os.fork()
    if child == 0:
        with open(world.store.path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(f"{gone.pid}\n")
            lock.flush()
            (world.store.path / "locked").touch()
            time.sleep(0.5)
            os._exit(0)
    try:
        while not (world.store.path / "locked").exists():
            time.sleep(0.001)
        assert world.run("apply", "fix").code == 0
    finally:
        os.waitpid(child, 0)


# Later ones: a named state that a later run completes or reverts


def test_a_straggler(world):
    world.add(timeouts={"transition": 1})
    assert world.running.ask("enter") == "entered"
    run = world.run("apply", "fix")
    assert (run.code, run.result["state"], run.result["reason"]) == (4, "partial", "stragglers")
    (process,) = run.result["processes"]
    (straggler,) = process["threads"]["stragglers"]
    assert (straggler["comm"], straggler["function"]) == ("worker", "step")
    assert straggler["tid"] != world.pid
    assert world.answers(3, 11)
    world.add("more", NEW_OTHER, ("other",))
    world.refused("transition_open", "apply", "more", "--pid", world.pid)
    assert world.run("status", "fix").result["state"] == "partial"
    assert world.running.ask("leave") == "left"
    run = world.run("apply", "fix")
    assert (run.code, run.result["state"]) == (0, "patched"), run
    assert world.run("revert", "fix").result["state"] == "vulnerable"


def test_no_global_quiescence(world):
    world.add(policy="global", timeouts={"transition": 1})
    assert world.running.ask("enter") == "entered"
    run = world.run("apply", "fix")
    assert (run.code, run.result["reason"]) == (4, "global_quiescence_timeout"), run
    (process,) = run.result["processes"]
    (straggler,) = process["threads"]["stragglers"]
    assert (straggler["comm"], straggler["function"]) == ("worker", "step")
    assert world.answers(2, 11)
    assert world.running.ask("leave") == "left"
    assert world.run("apply", "fix").result["state"] == "patched"
    assert world.answers(3, 11)


def test_a_health_check_that_fails(world):
    world.add(health_check={"command": ["/bin/sh", "-c", "echo unwell; exit 3"], "timeout": 10})
    run = world.run("apply", "fix")
    assert (run.code, run.result["reason"]) == (1, "health_check_failed"), run
    assert "unwell" in run.result["message"]
    assert run.result["state"] == "patched"
    assert world.run("revert", "fix").code == 0


def test_a_target_that_ends_and_one_that_executes(world, start):
    """Between the plan and the rest: the process is gone, the run says so and hurts nobody."""
    world.add()
    assert world.running.ask("enter") == "entered"
    command = world.store.command("apply", "fix", "--pid", world.pid, "--timeout", 60)
    applier = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while world.store.run("status", "--pid", world.pid).result["state"] != "pending":
        assert time.monotonic() < deadline
    world.running.say("exec")
    output, _ = applier.communicate(timeout=90)
    result = json.loads(output)
    assert result["reason"] in ("target_changed", "target_exited", "thread_gone"), result
    assert applier.returncode in (1, 3)
    assert world.running.line() == "ready"
    assert world.answers(2, 11)
    assert world.run("status").result["state"] == "vulnerable"
    assert world.run("apply", "fix").code == 0
    assert world.answers(3, 11)


def test_a_process_that_may_map_no_more(world):
    """The injected mmap fails: nothing is in force, and the next run does it."""
    world.add()
    unlimited = resource.prlimit(world.pid, resource.RLIMIT_AS)
    resource.prlimit(world.pid, resource.RLIMIT_AS, (1 << 20, unlimited[1]))
    run = world.run("apply", "fix")
    assert (run.code, run.result["reason"]) == (1, "injection_failed"), run
    assert "mmap(" in run.result["message"] and "limit" in run.result["message"]
    assert run.result["state"] == "vulnerable"
    assert world.answers(2, 11)
    resource.prlimit(world.pid, resource.RLIMIT_AS, unlimited)
    assert world.run("apply", "fix").code == 0
    assert world.answers(3, 11)


# Live memory


def _region(world):
    """The address of the region's header."""
    with open(f"/proc/{world.pid}/mem", "rb", buffering=0) as memory:
        for mapping in MemoryMap.read(world.pid):
            if mapping.perms == "rw-p" and not mapping.path:
                if os.pread(memory.fileno(), len(MAGIC), mapping.start) == MAGIC:
                    return mapping.start
    raise AssertionError("no region")


@pytest.mark.parametrize(
    ("offset", "data", "reason", "code"),
    [(8, b"\xff\xff\xff\x7f", "header_newer", 3), (None, b"\xff" * 64, "header_corrupt", 5)],
)
def test_a_header_that_is_not_ours(world, offset, data, reason, code):
    """A hostile process, or a newer applier's: nothing is believed, nothing is written."""
    world.add()
    assert world.run("apply", "fix").code == 0
    at = _region(world)
    with open(f"/proc/{world.pid}/mem", "r+b", buffering=0) as memory:
        (mapping,) = [m for m in MemoryMap.read(world.pid) if m.start == at]
        saved = os.pread(memory.fileno(), mapping.size, at)
        copies = [found.start() for found in re.finditer(MAGIC, saved)]
        assert len(copies) == 2
        places = [copy + 96 for copy in copies] if offset is None else [offset]
        for place in places:
            os.pwrite(memory.fileno(), data, at + place)
        run = world.run("status")
        assert run.code == code, run
        assert (run.result["reason"], run.result["state"]) == (reason, "unknown"), run
        world.refused(reason, "apply", "fix", "--pid", world.pid)
        for place in places:
            os.pwrite(memory.fileno(), saved[place : place + len(data)], at + place)
    assert world.run("verify").code == 0
    assert world.answers(3, 11)
