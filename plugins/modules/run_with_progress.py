"""Documentation of run_with_progress (ansible-doc, ansible-lint); the action plugin of that name does the work."""

DOCUMENTATION = r"""
module: run_with_progress
short_description: Run a module in the background and show how far it is
description:
  - Starts a module with Ansible's own async wrapper on the host, and shows the last line of a progress file after
    2 seconds and then every 10 seconds, until the module ends.
  - Returns the module's own result, a failure included. In check mode the module runs directly.
  - A module whose work is in an action plugin (copy, template, ...) can not be run this way.
  - Nor can one whose result has a key C(started) or C(finished), which Ansible takes for the state of the job.
options:
  module:
    description: Name of the module to run.
    type: str
    required: true
  args:
    description: Arguments of the module.
    type: dict
    default: {}
  progress:
    description: File on the host whose last line is shown. Whoever does the work writes it; it may be missing.
    type: str
    required: true
  title:
    description: What is shown before the line.
    type: str
    required: true
  timeout:
    description: Seconds after which the job is ended.
    type: int
    default: 3600
  lease:
    description:
      - File on the host that is touched with every look, at least every few seconds, so that the job can tell whether
        somebody still follows it. None when empty.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Build llama.cpp
  run_with_progress:
    module: ansible.builtin.command
    args:
      cmd: ninja -C /var/cache/llama-tiers/build/example
    progress: /var/cache/llama-tiers/build/example/build.log
    title: llama.cpp
    timeout: 7200
"""

RETURN = r"""
"*":
  description: What the module returned.
  returned: always
  type: dict
"""
