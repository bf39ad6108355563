"""A real Slurm cluster on emulated hosts: each has its own network, name and processes.

No munge, no accounting and no cgroups: what a job leaves behind is not ended by Slurm, and seen.
"""

import contextlib
import os
import re
import shutil
import subprocess

import network
import psutil

from helpers import wait_until
from twinckpt.agents.emulated_machines import die_with_parent

_CONFIGURATION = """
ClusterName=emulated
SlurmctldHost=controller({addresses[controller]})
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
SchedulerType=sched/builtin
SlurmdTimeout=10
KillWait=5
# What some clusters set, and a job must overrule: others end soon after a task has, or at once.
WaitTime=5
KillOnBadExit=1
"""


def why_not():
    """Return why there can be no cluster here; an empty string if there can."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: install slurmctld, slurmd and slurm-client"
    return network.why_not()


class SlurmCluster:
    """Nodes of these names, and a controller; use it in a `with` statement."""

    def __init__(self, folder, nodes):
        self._folder, self._nodes = folder, nodes
        self._hosts = {}
        self._network = network.Network(["controller", *nodes])
        self._environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._write_files()

    def __enter__(self):
        try:
            self._start("controller", "slurmctld -D")
            for node in self._nodes:
                self._start(node, f"slurmd -D -N {node}")
            wait_until(lambda: self._num_idle() == len(self._nodes), "idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for host in list(self._hosts):
            self.kill(host)
        self._network.close()

    def submit(self, *arguments, **environment):
        """Run sbatch; return the job's number."""
        return self._run("sbatch", "--parsable", *arguments, **environment)

    def cancel(self, job):
        """Run scancel."""
        self._run("scancel", job)

    def wait_for_end(self, job):
        """Return the state that a job has ended in."""

        def ended():
            shown = self._run("scontrol", "show", "job", job)
            state = re.search(r"JobState=(\w+)", shown)[1]
            return state if state not in ("PENDING", "RUNNING", "COMPLETING") else ""

        return wait_until(ended, f"end of job {job}", timeout_s=150.0)

    def kill(self, host):
        """End a host: all of its processes at once."""
        process = self._hosts.pop(host)
        process.kill()
        process.wait()

    def processes(self, node):
        """Return the names of the processes that live on a node, without its slurmd."""
        found = psutil.Process(self._hosts[node].pid).children(recursive=True)
        names = []
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE and process.name() != "slurmd":
                    names.append(process.name())
        return names

    def _num_idle(self):
        return int(self._run("sinfo", "-h", "-t", "idle", "-o", "%D") or 0)

    def _write_files(self):
        addresses = {name: self._network.address(name) for name in ("controller", *self._nodes)}
        lines = [_CONFIGURATION.format(addresses=addresses, folder=self._folder)]
        lines += [f"NodeName={node} NodeAddr={addresses[node]}\n" for node in self._nodes]
        lines += ["PartitionName=main Nodes=ALL Default=YES\n"]
        (self._folder / "slurm.conf").write_text("".join(lines))
        names = "".join(f"{address} {name}\n" for name, address in addresses.items())
        (self._folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        for name in ("state", *self._nodes):
            (self._folder / name).mkdir()

    def _start(self, host, command):
        names = f"hostname {host} && mount --bind {self._folder}/hosts /etc/hosts"
        new = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with self._network.inside(host), open(self._folder / f"{host}.log", "wb") as log:
            self._hosts[host] = subprocess.Popen(
                [*new, "sh", "-c", f"{names} && exec {command}"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def _run(self, *command, **environment):
        with self._network.inside("controller"):
            done = subprocess.run(
                command,
                cwd=self._folder,
                env={**self._environment, **environment},
                capture_output=True,
                text=True,
                timeout=30,
            )
        return done.stdout.strip()
