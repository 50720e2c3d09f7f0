#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The playbooks on this machine, by the controller's ansible-core and by the oldest that is supported.
set -eux

oldest="$OUTPUT_DIR/ansible-core-2.18"
python -m venv "$oldest"
"$oldest/bin/python" -m pip install --quiet "ansible-core~=2.18.0" "jsonschema>=4.18"

run() {
    local ansible_playbook=$1
    shift
    "$ansible_playbook" --version
    ANSIBLE_PLAYBOOK="$ansible_playbook" python -m pytest -p no:cacheprovider -c /dev/null --rootdir . -v "$@"
}

run "$(command -v ansible-playbook)" .
run "$oldest/bin/ansible-playbook" test_empty_host_set.py test_lifecycle.py::test_the_whole_life_of_a_patch
