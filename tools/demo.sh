#!/usr/bin/env bash
# The main job on the lab host, then what is running where, how fast, and where the report is.
set -euo pipefail
cd "$(dirname "$0")/.."
# Ansible flushes nothing before its end: into a file or a pipe, progress would come in blocks of 8 KiB.
export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg" PYTHONUNBUFFERED=1
# Measured whole when the tiers are new (a minute or two each, on processor cores); after that the figures are carried over.
ansible-playbook -i inventories/lab site.yml -e verification_depth=auto
checker verify -i inventories/lab --quick
cat <<END

The lab host serves both tiers. Look at it:
  report      .lab/report/STATUS.md
  clients     .lab/report/config/models/gpuhost.yml
  unit        ssh -F .lab/ssh_config gpuhost systemctl cat llama-tier-deep
  ask it      ssh -F .lab/ssh_config gpuhost, and there:
                sed 's/^/Authorization: Bearer /;q' /etc/llama-tiers/keys/deep |
                curl -sH @- 127.0.0.1:8081/v1/completions -d '{"prompt": "A GPU is", "max_tokens": 32}'
  again       make demo      (changes nothing)
  away        make lab-down
END
