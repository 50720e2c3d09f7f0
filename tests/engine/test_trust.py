# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is believed: keys of all kinds, rotation, revocation; and what is still done for a patch
whose signer no longer is."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import struct
import subprocess

import pytest
from proof.bundles import PRINCIPAL, SignedStore, make_key, signature
from watched.world import Watch, Watched, answer, ended
from wfpatch.errors import Refused
from wfpatch.host import Options
from wfpatch.trust import revoked_keys, verify, verify_bytes

DATA = b'{"some":"manifest"}'
OPENSSH = tuple(
    int(number)
    for number in re.search(
        r"OpenSSH_(\d+)\.(\d+)",
        subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr,
    ).groups()
)
#: valid-after and valid-before came with 8.8; before, such a line allows nobody.
knows_validity = pytest.mark.skipif(OPENSSH < (8, 8), reason="this OpenSSH knows no validity")


class Keys:
    """Signatures over DATA, the list of allowed signers, and the list of revoked keys."""

    def __init__(self, directory):
        self.directory = directory
        self.signers = directory / "allowed_signers"
        self.signature = directory / "data.sig"
        self.revoked = revoked_keys(self.signers)

    def make(self, name, *words):
        path = self.directory / name
        if words:
            subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", "", "-f", path, *words], check=True)
        else:
            make_key(path)
        return path

    def allow(self, *lines):
        """Lines of (principal, options, key)."""
        text = ""
        for principal, more, key in lines:
            options = ",".join(['namespaces="wfpatch"', *more])
            text += f"{principal} {options} {key.with_name(key.name + '.pub').read_text()}"
        self.signers.write_text(text)

    def sign(self, key, data=DATA):
        self.signature.write_bytes(signature(data, key))

    def verify(self):
        return verify(DATA, self.signature, self.signers)

    def refused(self):
        with pytest.raises(Refused) as refused:
            self.verify()
        return refused.value.reason


@pytest.fixture
def keys(tmp_path):
    return Keys(tmp_path)


@pytest.mark.parametrize(
    "kind", [("-t", "ed25519"), ("-t", "ecdsa"), ("-t", "rsa", "-b", "2048")], ids=lambda k: k[1]
)
def test_file_keys(keys, kind):
    key = keys.make("key", *kind)
    keys.allow(("release@example", [], key))
    keys.sign(key)
    assert keys.verify() == "release@example"
    with pytest.raises(Refused) as refused:
        verify(DATA + b" ", keys.signature, keys.signers)
    assert refused.value.reason == "signature_invalid"


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """A running ssh-agent, and no other."""
    address = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(address)], stdout=subprocess.PIPE)
    process.stdout.readline()
    monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
    yield address
    process.terminate()
    process.wait(10)
    process.stdout.close()


def test_a_key_that_only_the_agent_has(keys, agent):
    key = keys.make("key")
    keys.allow(("release@example", [], key))
    subprocess.run(["ssh-add", "-q", key], check=True, capture_output=True)
    key.unlink()
    keys.sign(key.with_name("key.pub"))
    assert keys.verify() == "release@example"


def string(data):
    return struct.pack(">I", len(data)) + data


class Authenticator:
    """What a FIDO authenticator does for a key of the kind sk-ssh-ed25519@openssh.com (PROTOCOL.u2f
    and PROTOCOL.sshsig of OpenSSH), in software: there is no such device in this machine."""

    KIND = b"sk-ssh-ed25519@openssh.com"

    def __init__(self):
        private = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
        self._key = private.Ed25519PrivateKey.generate()
        raw = self._key.public_key().public_bytes_raw()
        self.blob = string(self.KIND) + string(raw) + string(b"ssh:")

    def public(self):
        return f"{self.KIND.decode()} {base64.b64encode(self.blob).decode()}\n"

    def sign(self, data, touched=True):
        fields = string(b"wfpatch") + string(b"") + string(b"sha512")
        message = b"SSHSIG" + fields + string(hashlib.sha512(data).digest())
        counted = struct.pack(">BI", int(touched), 7)
        signed = hashlib.sha256(b"ssh:").digest() + counted + hashlib.sha256(message).digest()
        made = string(self.KIND) + string(self._key.sign(signed)) + counted
        blob = b"SSHSIG" + struct.pack(">I", 1) + string(self.blob) + fields + string(made)
        text = base64.encodebytes(blob).decode()
        return f"-----BEGIN SSH SIGNATURE-----\n{text}-----END SSH SIGNATURE-----\n".encode()


def test_a_key_in_hardware(keys):
    device = Authenticator()
    keys.signers.write_text(f'release@example namespaces="wfpatch" {device.public()}')
    keys.signature.write_bytes(device.sign(DATA))
    assert keys.verify() == "release@example"
    keys.signature.write_bytes(device.sign(DATA + b" "))
    assert keys.refused() == "signature_invalid"
    keys.signature.write_bytes(Authenticator().sign(DATA))
    assert keys.refused() == "signer_unknown"
    keys.signature.write_bytes(device.sign(DATA))
    keys.revoked.write_text(device.public())
    assert keys.refused() == "signer_revoked"


def test_another_namespace_is_no_signature_of_a_patch(keys):
    key = keys.make("key")
    keys.allow(("release@example", [], key))
    keys.signature.write_bytes(signature(DATA, key, "file"))
    assert keys.refused() == "signature_invalid"
    with pytest.raises(Refused):
        verify_bytes(DATA, keys.signature)


@knows_validity
def test_rotation(keys):
    """The old key until a day, the new one from a day on; for a time both."""
    old, new = keys.make("old"), keys.make("new")
    past, future = "20200101", "20990101"
    for old_until, new_from, valid in (
        (future, future, (True, False)),
        (future, past, (True, True)),
        (past, past, (False, True)),
    ):
        keys.allow(
            ("release@example", [f'valid-before="{old_until}"'], old),
            ("release@example", [f'valid-after="{new_from}"'], new),
        )
        found = []
        for key in (old, new):
            keys.sign(key)
            try:
                found.append(keys.verify() == "release@example")
            except Refused as error:
                assert error.reason == "signer_expired"
                found.append(False)
        assert tuple(found) == valid


def revoke_by_krl(keys, *revoked):
    public = [key.with_name(key.name + ".pub") for key in revoked]
    subprocess.run(
        ["ssh-keygen", "-q", "-k", "-f", keys.revoked, *public], check=True, capture_output=True
    )


def revoke_by_list(keys, *revoked):
    keys.revoked.write_text(
        "# lost in June\n"
        + "".join(key.with_name(key.name + ".pub").read_text() for key in revoked)
    )


@pytest.mark.parametrize("revoke", [revoke_by_krl, revoke_by_list])
def test_revocation(keys, revoke):
    old, new = keys.make("old"), keys.make("new")
    keys.allow(("release@example", [], old), ("release@example", [], new))
    revoke(keys, old)
    keys.sign(old)
    assert keys.refused() == "signer_revoked"
    verify_bytes(DATA, keys.signature)
    keys.sign(new)
    assert keys.verify() == "release@example"


def test_a_damaged_list_of_revoked_keys_lets_nothing_pass(keys):
    key = keys.make("key")
    keys.allow(("release@example", [], key))
    keys.sign(key)
    for damaged in (b"SSHKRL\n\0 and no more", b"ssh-ed25519 nonsense\n"):
        keys.revoked.write_bytes(damaged)
        assert keys.refused() == "revocations_invalid"
    keys.revoked.unlink()
    keys.revoked.symlink_to("nowhere")
    assert keys.refused() == "revocations_invalid"


# -- a bundle of a key that was revoked


@pytest.fixture
def world(tmp_path):
    """A service with its patch, whose signer has two keys."""
    found = Watched(tmp_path)
    found.want("fix-answer")
    return found


def revoke(signed):
    public = signed.key.with_name(signed.key.name + ".pub")
    revoked_keys(signed.signers).write_text(public.read_text())


def test_it_is_not_applied_and_can_be_read_and_reverted(world, start):
    patched, other = start(world.program), start(world.program)
    (process,) = world.host().apply(["fix-answer"], Options(pids=(patched.pid,))).processes
    assert process.state == "patched"
    revoke(world.signed)
    for verb in ("apply", "plan"):
        done = world.signed.run(verb, "fix-answer", "--pid", other.pid)
        assert (done.code, done.result["reason"]) == (3, "signer_revoked"), done
    assert answer(other)[1] == 1
    bundle = world.signed.run("bundle", "verify", world.signed.folder("fix-answer"))
    assert (bundle.code, bundle.result["reason"]) == (3, "signer_revoked")
    read = world.signed.run("verify", "fix-answer", "--pid", patched.pid)
    assert (read.code, read.result["state"]) == (0, "patched")
    assert any("signer_revoked" in warning for warning in read.result["warnings"])
    reverted = world.signed.run("revert", "fix-answer", "--pid", patched.pid)
    assert (reverted.code, reverted.result["changed"]) == (0, True), reverted
    assert answer(patched)[1] == 1


def test_the_watch_does_not_apply_it(world, start):
    watching = Watch(world.signed, "--starts", "polling")
    try:
        first = start(world.program)
        watching.until("patched", first.pid)
        revoke(world.signed)
        event = watching.until("refused")
        assert (event["patches"], event["reason"]) == ("fix-answer", "signer_revoked")
        second = start(world.program)
        # Signed anew by another key, it is taken up again.
        signed = SignedStore(world.directory)
        key = make_key(world.directory / "new")
        with open(signed.signers, "a", encoding="ascii") as file:
            file.write(
                f'{PRINCIPAL} namespaces="wfpatch" {(world.directory / "new.pub").read_text()}'
            )
        assert answer(second)[1] == 1
        data = (signed.folder("fix-answer") / "bundle.json").read_bytes()
        signed.write_manifest("fix-answer", data, key)
        watching.until("patched", second.pid)
        assert (answer(first)[1], answer(second)[1]) == (2, 2)
        assert os.path.exists(f"/proc/{first.pid}")
    finally:
        ended(watching)
