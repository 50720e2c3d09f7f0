#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write where this machine's pip gets packages from into a pip.conf for another place.

  setup/pip_settings.py FILE [--certificate-into ROOT]

For a home directory or a root in which pip must work as it does here: a company's index, proxy or
certificate is a matter of the machine. With --certificate-into, settings that name files of this
machine only are left out, except the certificate, which is copied into the root.

Run with the environment's Python.
"""

from __future__ import annotations

import argparse
import configparser
import pathlib
import shutil
import subprocess
import sys

#: What says where packages come from; not, for instance, what a user wants to see.
WANTED = ("cert", "index-url", "extra-index-url", "find-links", "proxy", "trusted-host")
ANYWHERE = ("cert", "index-url", "proxy", "trusted-host")
#: In a root, beside pip.conf.
CERTIFICATE = "/etc/pip-certificate.pem"


def settings() -> dict[str, str]:
    """pip's own view of its files and variables; a variable wins over a file."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, str] = {}
    for wanted in ("global", "install", ":env:"):
        for line in told.splitlines():
            name, _, value = line.partition("=")
            section, _, key = name.partition(".")
            if section == wanted and key in WANTED:
                found[key] = value.strip("'").replace("\\n", "\n")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Write this machine's pip settings to a file.")
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--certificate-into", type=pathlib.Path, metavar="ROOT")
    arguments = parser.parse_args()
    found = settings()
    if arguments.certificate_into:
        found = {key: value for key, value in found.items() if key in ANYWHERE}
        if "cert" in found:
            shutil.copy(found["cert"], arguments.certificate_into / CERTIFICATE[1:])
            found["cert"] = CERTIFICATE
    conf = configparser.ConfigParser(interpolation=None)
    conf["global"] = {"disable-pip-version-check": "true", **found}
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    with arguments.file.open("w") as stream:
        conf.write(stream)
    return 0


if __name__ == "__main__":
    sys.exit(main())
