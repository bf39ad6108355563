r"""The report's section for each experiment: claim, figure, numbers, verdict.

The report holds a section for every experiment whose samples exist, and none for the others. An
experiment without an entry in `SECTIONS` still gets its figure and its numbers; an entry adds a
title and prose, in LaTeX, where numbers are macros (`\saveDiskMs{}`) and never typed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twinckpt.analysis import format as fmt
from twinckpt.analysis.claims import Judgement
from twinckpt.analysis.metrics import BY_NAME
from twinckpt.analysis.tables import evidence, metric_rows, tabular


@dataclass(frozen=True)
class Section:
    """What an experiment's section says: what is asked, and how to read the figure."""

    title: str
    question: str
    caption: str


SECTIONS: dict[str, Section] = {
    "save_cost": Section(
        "What a checkpoint costs",
        r"Seed row 1; the paper's checkpoint time (Fig.~11). The same state on both sides: "
        r"\saveBytes{} for the largest rank in RAM, \saveDiskBytes{} on disk.",
        r"What the training loop waits, and how long it takes until the copy is recoverable. The "
        r"loop waits \saveDiskStallMs{} for disk and \saveRamStallMs{} for RAM; the state is safe "
        r"after \saveDiskMs{} and \saveRamMs{}. Dots are repeats.",
    ),
    "recovery_time": Section(
        "Recovery from a killed process and a killed machine",
        r"Seed row 2; the paper's recovery timeline (Fig.~14). Ranks and machines are killed with "
        r"SIGKILL; the clock runs from the kill to the end of the first new step.",
        r"Recovery from disk takes \recoveryDiskTotalMs{}, from a peer's RAM "
        r"\recoveryRamTotalMs{}, from the machine's own RAM \recoveryRamLocalTotalMs{}. The "
        r"load alone (right) takes \recoveryDiskMs{}, \recoveryRamMs{} and "
        r"\recoveryRamLocalMs{}.",
    ),
    "throughput": Section(
        "Training speed with a checkpoint every step",
        r"Seed row 3; the paper's iteration time (Fig.~7). Blocks with and without checkpoints "
        r"alternate in one process.",
        r"Without checkpoints \throughputNoneItS{}, with checkpoints to disk \throughputDiskItS{}, "
        r"to peers' RAM \throughputRamItS{}. Against training without checkpoints, RAM lengthens "
        r"the iteration by \throughputOverheadPercent{} \throughputOverheadPercentInterval{}.",
    ),
    "training": Section(
        "Does a failure change the result?",
        r"Nobody's figure, but everybody's assumption: training that was interrupted ends with the "
        r"parameters of training that was not.",
        r"Loss with and without failures; equal curves lie on each other. The same parameters, bit "
        r"for bit, after the loss of a rank: \trainingRankLossIdentical{}; of a machine: "
        r"\trainingMachineLossIdentical{}; of a replica group: \trainingGroupLossIdentical{}. The "
        r"undisturbed run ends at \trainingBitsPerByte{}.",
    ),
    "interleaving": Section(
        "Traffic in the idle spans of the network",
        r"The paper's ablation (Fig.~16): blocking, naive, without pipeline, full schedule. "
        r"Links are slowed by a configured limit, so they are emulated.",
        r"Iteration time under each way to send the copies, and the idle spans that they use.",
    ),
    "placement": Section(
        "Which losses a placement survives",
        r"The paper's Fig.~9: closed form, enumeration, Monte Carlo, and clusters that were really "
        r"killed.",
        r"Probability that every shard survives in RAM when k machines are lost at once. Of 16 "
        r"machines, 2 lost: \placementGroupKTwoPercent{} (group); 3 lost: "
        r"\placementGroupKThreePercent{} (group), \placementRingKThreePercent{} (ring). Did every "
        r"set that was really killed end as computed? \placementKillsAsPredicted{}.",
    ),
    "scaling": Section(
        "How it grows with ranks and state",
        r"Beyond the paper: power laws fitted to stall, replication and recovery.",
        r"Measured values and fitted lines, with their exponents.",
    ),
    "wasted_time": Section(
        "A year of failures, up to 10,000 machines",
        r"The paper's wasted time, frequency and goodput (Figs.~10 to 12 and 15). Nothing here is "
        r"measured: the paper's points are predicted from its set-up, with no fitted constant, and "
        r"goodput is simulated. The largest error of a published value is "
        r"\paperPointsMaxErrorPercent{}: the checkpoint time over the slower network, which we "
        r"take at its line rate. Every published bound holds: \paperBoundsHold{}.",
        r"Goodput over a simulated year. Dots are simulated, lines are the closed form, which does "
        r"not know replica groups that are lost whole. Left: the paper's failure rate; at 1,000 "
        r"machines GEMINI keeps \goodputGeminiOneZeroZeroZeroPercent{} of the time, storage as "
        r"often as it can \goodputHighfreqOneZeroZeroZeroPercent{}, every three hours "
        r"\goodputStrawmanOneZeroZeroZeroPercent{}. Middle: the rate reported for Llama 3. Right: "
        r"racks that fail at once, where a placement that keeps replicas apart makes the "
        r"difference. The curve of twinckpt is a prediction for the paper's hardware.",
    ),
    "peers": Section(
        "What users could take instead",
        r"Beyond the paper: rivals on the same tensors, in turn, in their recommended settings; "
        r"lm-resiliency is by the paper's author. Files survive more than memory does; torchft "
        r"needs a live data-parallel replica.",
        r"Stall of a blocking save, time until the state survives its machine, and restore of a "
        r"rank that lost everything. lm-resiliency over ours: \doneVsLmResiliencyX{} until "
        r"replicated, \restoreVsLmResiliencyX{} for the restore, \extraVsLmResiliencyX{} added "
        r"to a busy step. The least stall of all peers over ours: \stallVsBestPeerX{} blocking, "
        r"\overlappedStallVsBestPeerX{} beside a host that waits.",
    ),
    "control_plane": Section(
        "The control plane under simulated faults",
        r"Beyond the paper: clusters, delays and faults drawn from a seed, invariants checked "
        r"after every event.",
        r"\simulatedClusters{} clusters, \simulatedEvents{} events, "
        r"\invariantViolations{} violations; of \mutantsPlanted{} planted bugs "
        r"\mutantsMissed{} were missed. Left: the root's time for one decision; it "
        r"plans the recovery of 10,000 machines in "
        r"\planOneZeroZeroZeroZeroMachinesS{} and takes in \rootHeartbeatsPerS{} heartbeats. "
        r"Right: how soon simulated clusters commit again after the last of their faults.",
    ),
    "soak": Section(
        "A training run under random faults",
        r"Beyond the paper: ranks, warm parents, worker agents, machines and roots are killed at "
        r"random moments, recoveries included; then the same training runs undisturbed.",
        r"\soakFailures{} failures; training went on after \soakToStepS{}. All "
        r"\soakLossesCompared{} logged losses are those of the undisturbed run: "
        r"\soakLossIdentical{}. Left over: \soakLeakedProcesses{} processes, "
        r"\soakLeakedFiles{} files; the worst worker agent gained "
        r"\soakAgentRssGrowthMib{}.",
    ),
    "limits": Section(
        "How far from the limits of the machine",
        r"Beyond the paper: each operation beside the memory copy or transfer it cannot beat.",
        r"Operations and their limits.",
    ),
}  # fmt: skip


def sections(
    summary: dict[str, Any], judgements: Sequence[Judgement], experiments: Sequence[str],
    figures: Sequence[str],
) -> str:  # fmt: skip
    """All sections in the given order of experiments; those that have no samples are not given."""
    return "\n".join(
        _section(name, summary, judgements, name in figures) for name in experiments
    )  # fmt: skip


def _section(
    name: str, summary: dict[str, Any], judgements: Sequence[Judgement], has_figure: bool
) -> str:
    words = SECTIONS.get(name)
    title = words.title if words else name.replace("_", " ").capitalize()
    lines = [rf"\subsection{{{title}}}"]
    if words:
        lines.append(words.question)
    if has_figure:
        lines.append(rf"\measuredfigure{{{name}}}{{{words.caption if words else ''}}}")
    found = [metric for metric in summary["metrics"] if _experiment_of(metric) == name]
    if found and not words:
        lines += [r"\begin{center}", r"\small", _numbers(found), r"\end{center}"]
    lines.append(_verdicts(name, judgements))
    return "\n".join(lines) + "\n"


def _verdicts(name: str, judgements: Sequence[Judgement]) -> str:
    own = [
        one for one in judgements
        if one.verdict != "not measured" and BY_NAME[one.metric].experiment == name
    ]  # fmt: skip
    if not own:
        return ""
    items = [
        rf"\item {fmt.escape(one.statement[:1].upper() + one.statement[1:])}: "
        rf"\textbf{{{one.verdict}}} ({evidence(one)})."
        for one in own
    ]
    return "\n".join([r"\begin{itemize}", *items, r"\end{itemize}"])


def _numbers(metrics: Sequence[Mapping[str, Any]]) -> str:
    return tabular("lrrrrr", ("Metric", "Value", r"95\,\%", "n", "Seed", "Paper"),
                   metric_rows(metrics))  # fmt: skip


def _experiment_of(metric: Mapping[str, Any]) -> str:
    return str(metric["source"]).split("/")[-2]
