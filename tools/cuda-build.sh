#!/usr/bin/env bash
# The whole engine for 61-real and 86-real on a Debian 13 lab host, by the role's own tasks (tests/lab/cuda_build.yml).
# Downloads 1.9 GB, takes 8 GB of disk and long on two cores; what was compiled is kept for the next try.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg"
tests/lab/lab.sh drop gpuhost
tests/lab/lab.sh up --suite trixie
ansible-playbook -i inventories/lab tests/lab/cuda_build.yml
tests/lab/lab.sh drop gpuhost
