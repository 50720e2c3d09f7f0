# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh says how it would reach a host, asked with the arguments that Ansible would give it."""

from __future__ import annotations

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._ssh_settings import (
    CannotStream,
    ssh_settings,
)


class Connection:
    """A connection plugin as far as it is asked for options."""

    transport = "ssh"

    def __init__(self, **options):
        self.options = {"host": "web1.example.org", **options}

    def get_option(self, name):
        return self.options[name]


@pytest.fixture
def config(tmp_path):
    """A file for ssh -F, and nothing from this user's own."""

    def write(text):
        path = tmp_path / "ssh_config"
        path.write_text(text)
        return f"-F {path}"

    return write


def test_the_hosts_own_variables(config):
    found = ssh_settings(
        Connection(
            ssh_common_args=config(""),
            ssh_args="-o UserKnownHostsFile=/keys/known",
            port=2222,
            remote_user="operator",
            private_key_file="/keys/operator",
            password="secret",
            timeout=7,
        )
    )
    assert (found.host, found.port, found.user) == ("web1.example.org", 2222, "operator")
    assert (found.key_name, found.key_port) == ("web1.example.org", 2222)
    assert found.identities == ("/keys/operator",)
    assert found.known_hosts[0] == "/keys/known"
    assert (found.password, found.timeout, found.proxy) == ("secret", 7, None)


def test_what_a_file_says_of_the_host(config):
    found = ssh_settings(
        Connection(
            host="web1",
            ssh_common_args=config(
                "Host web1\n  HostName 192.0.2.7\n  HostKeyAlias web1\n  Port 2022\n"
                "  User nobody\n  IdentitiesOnly yes\n  GlobalKnownHostsFile none\n"
                "  UserKnownHostsFile /keys/known\n"
                "  ProxyCommand connect %h %p %r 100%%\n  ProxyUseFdpass yes\n"
            ),
        )
    )
    assert (found.host, found.port, found.user) == ("192.0.2.7", 2022, "nobody")
    # An alias is listed as it stands, without the port.
    assert (found.key_name, found.key_port) == ("web1", 22)
    assert found.known_hosts == ("/keys/known",)
    assert found.agent is False
    assert found.proxy == "connect 192.0.2.7 2022 nobody 100%"
    assert found.passes_socket is True


def test_jump_hosts(config):
    plain = config("")
    found = ssh_settings(Connection(ssh_common_args=f"{plain} -J operator@jump.example.org:2200"))
    assert found.proxy == (
        f"ssh -o BatchMode=yes {plain} -W '[web1.example.org]:22' "
        "ssh://operator@jump.example.org:2200"
    )
    both = ssh_settings(Connection(ssh_common_args=f"{plain} -o ProxyJump=one,two"))
    assert both.proxy.endswith(f"{plain} -J one -W '[web1.example.org]:22' ssh://two")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": "-oProxyCommand=touch x"}, "is no host"),
        ({"ssh_executable": "/nowhere/ssh"}, "/nowhere/ssh does not say how it reaches"),
        ({"ssh_common_args": "-o NoSuchKeyword=1"}, "does not say how it reaches"),
    ],
)
def test_what_cannot_be(options, says):
    with pytest.raises(CannotStream, match=says):
        ssh_settings(Connection(**options))


def test_another_kind_of_connection():
    connection = Connection()
    connection.transport = "docker"
    with pytest.raises(CannotStream, match="the connection is docker, not ssh"):
        ssh_settings(connection)
