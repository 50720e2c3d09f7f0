# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts one service of the host it runs on as its systemd unit says; each host has a copy.

Usage, as root in the host: start-unit UNIT [TIMEOUT]; prints the main process' pid.

Honoured, because it changes what a live patcher meets: ExecStart, Type=simple|notify|forking,
User, Group, UMask, LimitNOFILE, RuntimeDirectory, NoNewPrivileges, CapabilityBoundingSet,
PrivateTmp (a mount namespace), PrivateUsers (a user namespace) and MemoryDenyWriteExecute (a
seccomp filter like systemd's: mmap, mprotect, pkey_mprotect, shmat). All else is left out.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pathlib
import pwd
import resource
import select
import shlex
import socket
import struct
import sys
import time

UNITS = (pathlib.Path("/etc/systemd/system"), pathlib.Path("/lib/systemd/system"))
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_REC_PRIVATE = 16384 | 1 << 18
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
AUDIT_ARCH_X86_64 = 0xC000003E
LAST_CAPABILITY = pathlib.Path("/proc/sys/kernel/cap_last_cap")
#: linux/capability.h, those that Debian's units of this fleet name.
CAPABILITIES = {
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_SYS_RESOURCE": 24,
}

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Unit:
    """The [Service] section of a unit file, each key with all its values."""

    def __init__(self, name: str) -> None:
        for folder in UNITS:
            if (folder / name).is_file():
                text = (folder / name).read_text().replace("\\\n", " ")
                break
        else:
            raise FileNotFoundError(f"no unit {name}")
        self.name = name
        self.values: dict[str, list[str]] = {}
        section = ""
        for line in text.splitlines():
            line = line.strip()
            if line.startswith("["):
                section = line
            elif section == "[Service]" and "=" in line and line[0] not in "#;":
                key, _, value = line.partition("=")
                self.values.setdefault(key.strip(), []).append(value.strip())

    def get(self, key: str, default: str = "") -> str:
        return self.values.get(key, [default])[-1]

    def yes(self, key: str) -> bool:
        return self.get(key).lower() in ("yes", "true", "1", "on")

    def environment(self) -> dict[str, str]:
        """Environment= and EnvironmentFile=, whose absence a leading "-" forgives."""
        found: dict[str, str] = {}
        for value in self.values.get("Environment", []):
            for word in shlex.split(value):
                found[word.partition("=")[0]] = word.partition("=")[2]
        for value in self.values.get("EnvironmentFile", []):
            path = pathlib.Path(value.lstrip("-"))
            if path.exists() or not value.startswith("-"):
                for line in path.read_text().splitlines():
                    if "=" in line and not line.lstrip().startswith("#"):
                        name, _, text = line.partition("=")
                        found[name.strip()] = " ".join(shlex.split(text))
        return found

    def command(self, environment: dict[str, str]) -> list[str]:
        """ExecStart as words; $NAME as a word of its own is split, ${NAME} is not."""
        words: list[str] = []
        for word in shlex.split(self.get("ExecStart").lstrip("-@+!:")):
            if word.startswith("$") and not word.startswith("${"):
                words += environment.get(word[1:], "").split()
            else:
                for name, text in environment.items():
                    word = word.replace("${" + name + "}", text)
                words.append(word)
        return words


def deny_write_execute() -> None:
    """The filter that systemd's MemoryDenyWriteExecute installs, for x86-64 calls."""
    load, jump_equal, jump_set, give = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, JEQ, JSET, RET
    allow, refuse = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, ERRNO with EPERM
    # (call, offset of the argument's low half in seccomp_data, bits of which all must be set)
    rules = (
        (9, 16 + 2 * 8, (2, 4)),  # mmap: PROT_WRITE and PROT_EXEC together
        (10, 16 + 2 * 8, (4,)),  # mprotect: PROT_EXEC
        (329, 16 + 2 * 8, (4,)),  # pkey_mprotect: PROT_EXEC
        (30, 16 + 2 * 8, (0o100000,)),  # shmat: SHM_EXEC
    )
    program = [(load, 0, 0, 4), (jump_equal, 1, 0, AUDIT_ARCH_X86_64), (give, 0, 0, allow)]
    for call, offset, bits in rules:
        tests = [(load, 0, 0, offset)]
        for position, bit in enumerate(bits):
            # Not set: skip the rest of the tests and the refusal.
            tests.append((jump_set, 0, len(bits) - position, bit))
        tests.append((give, 0, 0, refuse))
        program += [(load, 0, 0, 0), (jump_equal, 0, len(tests), call), *tests]
    program.append((give, 0, 0, allow))
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(buffer))
    checked(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0), "seccomp")


def private_users(user: pwd.struct_passwd, group: int) -> None:
    """A user namespace that knows root and the service's user, mapped to themselves.

    Its maps are written by a child that stayed outside: it alone has the right to.
    """
    ready_read, ready_write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os.close(ready_write)
            os.read(ready_read, 1)
            for kind, number in (("uid", user.pw_uid), ("gid", group)):
                lines = "".join(f"{one} {one} 1\n" for one in sorted({0, number}))
                with open(f"/proc/{parent}/{kind}_map", "w") as file:
                    file.write(lines)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(ready_read)
    checked(libc.unshare(CLONE_NEWUSER), "unshare user namespace")
    os.close(ready_write)
    if os.waitpid(child, 0)[1]:
        raise OSError("the user namespace's maps could not be written")


def become(unit: Unit, command: list[str], environment: dict[str, str]) -> None:
    """Takes on everything the unit asks for, then the service's program. Never returns."""
    user = pwd.getpwnam(unit.get("User", "root"))
    group = grp.getgrnam(unit.get("Group")).gr_gid if unit.get("Group") else user.pw_gid
    groups = os.getgrouplist(user.pw_name, group)
    os.setsid()
    os.umask(int(unit.get("UMask", "022"), 8))
    if unit.get("LimitNOFILE"):
        # Containers often run without CAP_SYS_RESOURCE: then the limit stays what it may be.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limits = unit.get("LimitNOFILE").split(":")
        soft, hard = (min(int(limit), most) for limit in (limits[0], limits[-1]))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if unit.get("RuntimeDirectory"):
        folder = pathlib.Path("/run") / unit.get("RuntimeDirectory")
        folder.mkdir(exist_ok=True)
        os.chown(folder, user.pw_uid, group)
        folder.chmod(int(unit.get("RuntimeDirectoryMode", "755"), 8))
    if unit.yes("PrivateTmp"):
        checked(libc.unshare(CLONE_NEWNS), "unshare mount namespace")
        checked(libc.mount(None, b"/", None, MS_REC_PRIVATE, None), "mount /")
        for place in (b"/tmp", b"/var/tmp"):
            checked(libc.mount(b"tmpfs", place, b"tmpfs", 0, b"mode=1777"), "mount /tmp")
    output = os.open(f"/var/log/{unit.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if "CapabilityBoundingSet" in unit.values:
        kept = {CAPABILITIES[name] for name in unit.get("CapabilityBoundingSet").split()}
        if user.pw_uid:
            # Changing the user needs these; no capability survives that change.
            kept |= {CAPABILITIES["CAP_SETGID"], CAPABILITIES["CAP_SETUID"]}
        for number in range(int(LAST_CAPABILITY.read_text()) + 1):
            if number not in kept:
                checked(libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), "bounding set")
    os.setgroups(groups)
    if unit.yes("PrivateUsers"):
        private_users(user, group)
    os.setresgid(group, group, group)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    if unit.yes("NoNewPrivileges"):
        checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    if unit.yes("MemoryDenyWriteExecute"):
        deny_write_execute()
    os.execve(
        command[0],
        command,
        {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            **environment,
        },
    )


def main() -> int:
    """Starts the unit and, where it says when it is ready, waits for that."""
    unit = Unit(sys.argv[1])
    timeout = float(sys.argv[2]) if len(sys.argv) > 2 else 30.0
    environment = unit.environment()
    listener = None
    if unit.get("Type") == "notify":
        path = f"/run/{unit.name}.notify"
        pathlib.Path(path).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(path)
        os.chmod(path, 0o777)
        environment["NOTIFY_SOCKET"] = path
    command = unit.command(environment)
    pid = os.fork()
    if pid == 0:
        try:
            become(unit, command, environment)
        except BaseException as error:  # noqa: BLE001 - no copy of the caller may run on
            print(f"{unit.name}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(126)
    until = time.monotonic() + timeout
    while listener:
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise ChildProcessError(f"{unit.name} ended; see /var/log/{unit.name}.log")
        if time.monotonic() > until:
            raise TimeoutError(f"{unit.name} was not ready within {timeout:g} s")
        if select.select([listener], [], [], 0.1)[0] and b"READY=1" in listener.recv(4096):
            break
    print(pid)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"start-unit: {error}")
