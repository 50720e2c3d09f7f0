# SPDX-License-Identifier: GPL-3.0-or-later
"""A headless Chromium of Debian's archive, driven over its own protocol (CDP) through a pipe.

It runs in a root of its own (setup/root) and in namespaces of its own, without any network: a page
that needed one would fail.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import time
from typing import Any

TOP = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = "chromium-headless-shell,fonts-dejavu-core"
#: Mounts what a browser needs over a root that stays as it is, then becomes the browser. The page's
#: folder is read-only.
INSIDE = """
set -e
mount --rbind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/tmp"
mount -t tmpfs tmpfs "$1/dev"
mkdir "$1/dev/shm" "$1/tmp/home" "$1/tmp/page"
mount -t tmpfs tmpfs "$1/dev/shm"
for name in null zero random urandom full tty; do
    touch "$1/dev/$name"
    mount --bind "/dev/$name" "$1/dev/$name"
done
ln -s /proc/self/fd "$1/dev/fd"
mount --bind -o ro "$2" "$1/tmp/page"
shift 2
exec chroot "$ROOT" /usr/bin/env -i HOME=/tmp/home PATH=/usr/bin:/bin TZ=UTC LANG=C.UTF-8 "$@" \
    3<&"$COMMANDS" 4>&"$ANSWERS"
"""
FLAGS = (
    "--no-sandbox",  # it is root in namespaces of its own, and opens our page only
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "--user-data-dir=/tmp/home/profile",
)


class BrowserError(Exception):
    """The browser refused a command, threw an exception, or did not answer."""


class Browser:
    """One page. Times in seconds."""

    def __init__(self, folder: pathlib.Path) -> None:
        made = subprocess.run(
            [TOP / "setup" / "root", "bookworm", PACKAGES],
            check=True,
            capture_output=True,
            text=True,
        )
        root = made.stdout.strip()
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        program = shutil.which("chromium-headless-shell", path=f"{root}/usr/bin")
        assert program, root

        self._process = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork"),
                *("--kill-child", "--propagation", "private"),
                *("bash", "-c", INSIDE, "browser", root, str(folder)),
                *(program.removeprefix(root), *FLAGS, "about:blank"),
            ],
            env={**os.environ, "ROOT": root, "COMMANDS": f"{to_read}", "ANSWERS": f"{to_write}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(to_read, to_write),
        )
        os.close(to_read)
        os.close(to_write)
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        (target,) = [
            each
            for each in self.command("Target.getTargets")["targetInfos"]
            if each["type"] == "page"
        ]
        attached = self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)
        os.close(self._from)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)
        assert self._process.stderr
        self._process.stderr.close()

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._pending:
            left = until - time.monotonic()
            ready, _, _ = select.select([self._from], [], [], max(left, 0))
            data = os.read(self._from, 1 << 20) if ready else b""
            if not data:
                said = ""
                if self._process.poll() is not None and self._process.stderr:
                    said = self._process.stderr.read().decode("utf-8", "replace")[-1000:]
                raise BrowserError(f"no answer from the browser {said}")
            self._pending += data
        message, _, self._pending = self._pending.partition(b"\0")
        result: dict[str, Any] = json.loads(message)
        return result

    def command(self, method: str, timeout: float = 60, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; returns its result. Events on the way are kept."""
        self._number += 1
        sent: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            sent["sessionId"] = self._session
        os.write(self._to, json.dumps(sent).encode() + b"\0")
        until = time.monotonic() + timeout
        while True:
            message = self._message(until)
            if message.get("id") == self._number:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def wait_for(self, method: str, timeout: float = 60) -> dict[str, Any]:
        """The next event of that name, one that came already included."""
        until = time.monotonic() + timeout
        while True:
            for position, event in enumerate(self.events):
                if event.get("method") == method:
                    return self.events.pop(position)
            self.events.append(self._message(until))

    def size(self, width: int, height: int, phone: bool = False) -> None:
        """The window, in pixels of the page."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def open(self, name: str) -> None:
        """Open a file of the folder and wait until it is there."""
        self.events = [each for each in self.events if each.get("method") != "Page.loadEventFired"]
        self.command("Page.navigate", url=f"file:///tmp/page/{name}")
        self.wait_for("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        done = self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in done:
            raise BrowserError(f"{script}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def until(self, script: str, timeout: float = 30) -> None:
        """Wait for an expression to be true: what a click brings about may come a moment later."""
        until = time.monotonic() + timeout
        while not self.run(script):
            if time.monotonic() > until:
                raise BrowserError(f"not true within {timeout:g} s: {script}")
            time.sleep(0.01)

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a person would: it has to be in view."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.run(
            f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [b.x + Math.min(b.width / 2, 40), b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.command(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )

    def type_into(self, selector: str, text: str) -> None:
        """Give an input the focus and type."""
        self.click(selector)
        self.command("Input.insertText", text=text)

    def picture(self, path: pathlib.Path) -> None:
        """What the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self.command("Page.printToPDF", timeout=120)["data"])
