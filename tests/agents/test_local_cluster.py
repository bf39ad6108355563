"""`LocalCluster`: whoever uses it leaves nothing behind."""

import pytest

from twinckpt.agents.local_cluster import ClusterConfig, LocalCluster


class InterruptedCluster(LocalCluster):
    """One whose operator presses Ctrl-C when the second machine is to be started."""

    def add_machine(self, *, spare=False):
        if self.machines:
            raise KeyboardInterrupt
        return super().add_machine(spare=spare)


@pytest.mark.cluster
def test_one_that_is_interrupted_while_it_starts_ends_what_it_has_started(tmp_path):
    """Nothing else would: a `with` statement only ends what it has entered."""
    cluster = InterruptedCluster(ClusterConfig(2), ["--no-python", "sleep", "600"], tmp_path)
    with pytest.raises(KeyboardInterrupt), cluster:
        pass
    assert cluster.events
    assert cluster.processes_of_job() == []
