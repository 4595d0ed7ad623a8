"""Run any module in the background on the host and show how far it is.

A build or a download of many minutes says nothing through an ordinary task. This action starts the module with
Ansible's own async wrapper, reads the last line of a progress file that the job writes, and returns the module's own
result.
Options, examples and result: plugins/modules/run_with_progress.py.
The name can not begin with "with_": Ansible reads such a task key as an old-style loop.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shlex
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

# A job that finds nothing to do costs a fraction of a second, a long one is not disturbed: seconds between two looks.
POLL_DELAYS_S = (0.1, 0.2, 0.3, 0.5, 1.0)
POLL_DELAY_MAX_S = 2.0
FIRST_LINE_AFTER_S = 2.0
LINE_EVERY_S = 10.0
# The wrapper on the host ends the job at the timeout, looking every 5 s; after this much more it must be dead.
TIMEOUT_GRACE_S = 30.0
SEPARATOR = "\x1e"
# What the wrapper reports, at the end of a traceback, of a module that printed nothing.
NO_RESULT = "No start of json char found"
JOB_KEYS = ("ansible_job_id", "started", "finished", "results_file")


def last_line(text: str) -> str:
    """Return the last line with visible text; a carriage return ends a line too, as in terminal progress bars."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    visible = [line for line in lines if line]
    return re.sub(r"[\x00-\x1f\x7f]", "", visible[-1]) if visible else ""


def is_running(job_file_head: str) -> bool:
    """Tell whether async_wrapper's job file still says "started"; the module's result replaces it when it ends.

    An empty or unreadable head may be a result that was cut: async_status decides then.
    """
    try:
        job = json.loads(job_file_head)
    except ValueError:
        return False
    return isinstance(job, dict) and bool(job.get("started")) and not job.get("finished")


class ActionModule(ActionBase):
    """The action of run_with_progress."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and return its result; raise AnsibleActionFail when the job can not be followed."""
        super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(
            argument_spec={
                "module": {"type": "str", "required": True},
                "args": {"type": "dict", "default": {}},
                "progress": {"type": "str", "required": True},
                "title": {"type": "str", "required": True},
                "timeout": {"type": "int", "default": 3600},
                "lease": {"type": "str", "default": ""},
            }
        )
        task_vars = task_vars or {}
        if self._task.check_mode:
            return self._execute_module(
                module_name=options["module"], module_args=dict(options["args"]), task_vars=task_vars
            )

        results_file = self._start(options, task_vars)
        if not isinstance(results_file, str):
            return results_file
        self._follow(options, results_file, f"[{task_vars.get('inventory_hostname', '?')}] {options['title']}")
        result = self._finish(results_file, task_vars)
        if result.get("failed") and result.get("msg") == "Timeout exceeded":
            result["msg"] = f"{options['title']}: not done after {options['timeout']} s, ended"
        elif result.get("failed") and NO_RESULT in str(result.get("msg")):
            result["msg"] = (
                f"{options['title']}: the job ended without a result: it was killed, perhaps for want of memory "
                f"(journalctl -k on the host tells); run again. {result.get('stderr', '')}".rstrip()
            )
        return result

    def _start(self, options: dict[str, Any], task_vars: dict[str, Any]) -> str | dict[str, Any]:
        """Start the job; return the path of its job file on the host, or the result that says why it did not start."""
        self._task.async_val = options["timeout"]
        try:
            job = self._execute_module(
                module_name=options["module"],
                module_args=dict(options["args"]),
                task_vars=task_vars,
                wrap_async=True,
            )
        finally:
            # Otherwise the task executor polls the job as well, and this action never returns the module's result.
            self._task.async_val = 0
            # The wrapper removes its own directory; those of the calls that follow are ours to remove.
            self._cleanup_remote_tmp = True
        if "results_file" not in job:
            return dict(job)
        return str(job["results_file"])

    def _follow(self, options: dict[str, Any], results_file: str, title: str) -> None:
        """Show the progress file's last line until the job is done."""
        lease = f"touch {shlex.quote(options['lease'])}; " if options["lease"] else ""
        job, progress = shlex.quote(results_file), shlex.quote(options["progress"])
        # What an earlier job has left in the progress file is older than this job.
        look = (
            f"{lease}head -c 400 {job} 2>/dev/null; printf '\\036'; "
            f"[ {progress} -nt {job} ] && tail -c 400 {progress} 2>/dev/null || true"
        )
        started = time.monotonic()
        shown_at: float | None = None
        delays = iter(POLL_DELAYS_S)
        play = os.getppid()
        while True:
            time.sleep(next(delays, POLL_DELAY_MAX_S))
            if os.getppid() != play:
                # Ansible's workers outlive a play that was killed, and would go on following for nobody.
                raise AnsibleActionFail(f"{options['title']}: the play has ended; the job is left to itself")
            head, _, tail = self._low_level_execute_command(look)["stdout"].partition(SEPARATOR)
            if not is_running(head):
                return
            elapsed = time.monotonic() - started
            if elapsed > options["timeout"] + TIMEOUT_GRACE_S:
                raise AnsibleActionFail(
                    f"{options['title']}: the job neither ended nor was stopped after {options['timeout']} s; "
                    f"its state is in {results_file} on the host"
                )
            due = elapsed >= FIRST_LINE_AFTER_S if shown_at is None else elapsed - shown_at >= LINE_EVERY_S
            if due:
                shown_at = elapsed
                display.display(f"{title}: {last_line(tail) or 'working'} ({elapsed:.0f} s)")

    def _finish(self, results_file: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return the module's own result and remove the job file."""
        directory, job_id = posixpath.split(results_file)
        result: dict[str, Any] = self._execute_module(
            module_name="ansible.legacy.async_status",
            module_args={"jid": job_id, "mode": "status", "_async_dir": directory},
            task_vars=task_vars,
        )
        self._low_level_execute_command(f"rm -f {shlex.quote(results_file)}")
        self._remove_tmp_path(self._connection._shell.tmpdir)
        return {key: value for key, value in result.items() if key not in JOB_KEYS}
