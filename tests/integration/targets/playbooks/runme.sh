#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The playbooks on this machine, by the controller's ansible-core and by the oldest that is supported.
set -eux

oldest="$OUTPUT_DIR/ansible-core-2.18"
python -m venv "$oldest"
"$oldest/bin/python" -m pip install --quiet "ansible-core~=2.18.0" "jsonschema>=4.18"

for ansible_playbook in "$(command -v ansible-playbook)" "$oldest/bin/ansible-playbook"; do
    "$ansible_playbook" --version
    ANSIBLE_PLAYBOOK="$ansible_playbook" python -m pytest -p no:cacheprovider -c /dev/null --rootdir . -v .
done
