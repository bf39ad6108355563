r"""The report's section for each experiment: claim, figure, numbers, verdict.

The report holds a section for every experiment whose samples exist, and none for the others. An
experiment without an entry in `SECTIONS` still gets its figure and its numbers; an entry adds a
title and prose, in LaTeX, where numbers are macros (`\saveDiskMs{}`) and never typed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twinckpt.analysis import format as fmt
from twinckpt.analysis import style
from twinckpt.analysis.claims import Judgement
from twinckpt.analysis.metrics import BY_NAME
from twinckpt.analysis.tables import evidence, metric_table


@dataclass(frozen=True)
class Section:
    """The prose of an experiment's section: what is asked, and how to read the figure."""

    title: str
    question: str
    caption: str


SECTIONS: dict[str, Section] = {
    "save_cost": Section(
        "What a checkpoint costs",
        r"Seed row 1; the paper's checkpoint time (Fig.~11). The same state on both sides: "
        r"\saveBytes{} for the largest rank in RAM, \saveDiskBytes{} on disk.",
        r"How long the training loop waits, and how long until the copy is recoverable. The "
        r"loop waits \saveDiskStallMs{} for disk and \saveRamStallMs{} for RAM; the state is safe "
        r"after \saveDiskMs{} and \saveRamMs{}. Dots are repeats, whiskers intervals. Below, "
        r"states of several sizes, with nothing else to do: at the largest, DCP takes "
        r"\saveVsDcpX{} and DCP async \saveVsDcpAsyncX{} of the time of RAM on all replicas; a "
        r"blocking stall of DCP async is \saveStallVsDcpAsyncX{} of ours.",
    ),
    "recovery_time": Section(
        "Recovery from a killed process and a killed machine",
        r"Seed row 2; the paper's recovery timeline (Fig.~14). Ranks and machines are killed with "
        r"SIGKILL; the clock runs from the kill to the end of the first new step. That step is as "
        r"short as it can be, one sequence per rank, since every recovery ends with it.",
        r"Recovery from disk takes \recoveryDiskTotalMs{}, from a peer's RAM "
        r"\recoveryRamTotalMs{}, from the machine's own RAM \recoveryRamLocalTotalMs{}. "
        r"Loading alone takes \recoveryDiskMs{}, \recoveryRamMs{} and \recoveryRamLocalMs{}; a "
        r"peer's copy is fetched before that, while the processes start. Dots are "
        r"repeats, whiskers intervals. After the loss of a whole replica group a drained step is "
        r"read: \recoveryGroupTotalMs{}. torchrun alone restarts in \recoveryTorchrunTotalMs{} and "
        r"begins at step 0. With ranks "
        r"forked from a warm image it takes \rankLossToStepS{} from the loss of a rank to the next "
        r"step (\machineLossToStepS{} from that of a machine, with a spare), "
        r"\rankLossSpeedupVsTorchrunRamX{} faster than torchrun with RAM and "
        r"\rankLossSpeedupVsTorchrunDiskX{} faster than with disk. A step "
        r"alone takes \rankLossStepS{}, so a restart in no time at all would be "
        r"\rankLossBoundVsTorchrunRamX{} and \rankLossBoundVsTorchrunDiskX{} faster. All "
        r"ranks begin that step after \rankLossToReadyS{}, "
        r"\rankLossReadySpeedupVsTorchrunRamX{} and \rankLossReadySpeedupVsTorchrunDiskX{} faster.",
    ),
    "throughput": Section(
        "Training speed with checkpoints",
        r"Seed row 3; the paper's iteration time (Fig.~7). Blocks with and without checkpoints, "
        r"one every \checkpointInterval{}, alternate in one process. The seed's "
        r"\throughputGainPercentSeed{} is against training "
        r"that a blocking save to disk stalls: any gain follows from the length and the "
        r"frequency of those stalls, and would be as large with checkpoints that cost nothing. "
        r"Against training without checkpoints nobody can gain; there the question is what a "
        r"checkpoint costs.",
        r"Without checkpoints \throughputNoneItS{}, with checkpoints to disk "
        r"\throughputDiskItS{}, to peers' RAM \throughputRamItS{}. RAM gains "
        r"\throughputGainPercent{} \throughputGainPercentInterval{} on disk. Against training "
        r"without checkpoints, RAM lengthens the iteration by \throughputOverheadPercent{} "
        r"\throughputOverheadPercentInterval{}. The second bar, the same training without "
        r"checkpoints once more, says how much of that is noise: \throughputControlPercent{} "
        r"\throughputControlPercentInterval{}. Dots are blocks of steps, whiskers intervals.",
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
        r"Left: iterations under each way to send the copies (dots; bars are medians, whiskers "
        r"intervals). Right: what was busy when in one iteration of each. Against no checkpoints "
        r"(\interleavingNoneMs{}) blocking adds \interleavingBlockingOverheadPercent{} "
        r"\interleavingBlockingOverheadPercentInterval{}, naive "
        r"\interleavingNaiveOverheadPercent{} \interleavingNaiveOverheadPercentInterval{}, no "
        r"pipeline \interleavingNoPipelineOverheadPercent{} "
        r"\interleavingNoPipelineOverheadPercentInterval{}, the full schedule "
        r"\interleavingFullScheduleOverheadPercent{} "
        r"\interleavingFullScheduleOverheadPercentInterval{}. The schedule's own prediction is "
        r"\interleavingBlockingPredictedPercent{}, \interleavingNaivePredictedPercent{}, "
        r"\interleavingNoPipelinePredictedPercent{} and "
        r"\interleavingFullSchedulePredictedPercent{}. Links are idle for "
        r"\interleavingIdlePercent{} of an iteration.",
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
        r"Medians with intervals, fitted lines and their exponents (0 is constant, 1 "
        r"proportional). Until replicated: \scalingDoneMibExponent{} with the state, "
        r"\scalingDoneRanksExponent{} with the ranks, which share this machine's cores.",
    ),
    "wasted_time": Section(
        "What failures cost clusters of many machines",
        r"The paper's wasted time, frequency and goodput (Figs.~10 to 12 and 15). Nothing here is "
        r"measured: the paper's points are predicted from its set-up, with no fitted constant, and "
        r"goodput is simulated. The largest error of a published value is "
        r"\paperPointsMaxErrorPercent{}: the checkpoint time over the slower network, which we "
        r"take at its line rate. Every published bound holds: \paperBoundsHold{}.",
        r"Goodput over \simulatedDays{} simulated days. Dots are simulated, lines are the closed "
        r"form, which leaves out replica groups that are lost whole. Left: the paper's failure "
        r"rate; at 1,000 machines GEMINI keeps \goodputGeminiOneZeroZeroZeroPercent{} of the time, "
        r"storage as often as it can \goodputHighfreqOneZeroZeroZeroPercent{}, every three hours "
        r"\goodputStrawmanOneZeroZeroZeroPercent{}. Middle: the rate reported for Llama 3. Right: "
        r"racks that fail at once, where a placement that keeps replicas apart makes the "
        r"difference. The curve of twinckpt is a prediction for the paper's hardware.",
    ),
    "peers": Section(
        "What users could take instead",
        r"Beyond the paper: rivals on the same tensors, in turn, in their recommended settings; "
        r"lm-resiliency is by the paper's author. Files survive more than memory does; torchft "
        r"needs a live data-parallel replica; DLRover's copy survives the loss of its rank only.",
        r"Stall of a blocking save, time until the state survives its machine, and restore of a "
        r"rank that lost everything. lm-resiliency over ours: \doneVsLmResiliencyX{} until "
        r"replicated, \restoreVsLmResiliencyX{} for the restore, \extraVsLmResiliencyX{} added "
        r"to a busy step; over a plain memcpy and TCP transfer, which check nothing, "
        r"\plainDoneVsLmResiliencyX{}, \plainRestoreVsLmResiliencyX{} and "
        r"\plainExtraVsLmResiliencyX{}. The least stall of all peers over ours: "
        r"\stallVsBestPeerX{} blocking, "
        r"\overlappedStallVsBestPeerX{} beside a host that waits.",
    ),
    "control_plane": Section(
        "The control plane under simulated faults",
        r"Beyond the paper: clusters, delays and faults drawn from a seed, invariants checked "
        r"after every event.",
        r"\simulatedClusters{} clusters, \simulatedEvents{} events, "
        r"\invariantViolations{} violations; of \mutantsPlanted{} planted bugs "
        r"\mutantsMissed{} were missed. Left: the root's time for one decision (dotted: in "
        r"proportion); it plans the recovery of 10,000 machines in "
        r"\planOneZeroZeroZeroZeroMachinesS{} and takes in heartbeats at \rootHeartbeatsPerS{}. "
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
        r"Beyond the paper: each operation beside a plain memory copy or transfer of its bytes.",
        r"Time of each operation over that of the plain copy or transfer (dotted: as fast as "
        r"that); lines are intervals. With most ranks and the largest state, and over a memcpy: a "
        r"loop that wants its state copied at once waits \stagingVsMemcpyX{}, checksums "
        r"included. Replication reaches "
        r"\replicationVsLoopbackX{} of plain TCP's rate; restores verify every byte. A worker "
        r"agent needs \agentOverheadMib{} beyond its slots. Our copies bypass the cache; one that "
        r"hashes each chunk, without any Python, takes "
        r"\memcpyHashedVsMemcpyX{} of a memcpy; what a restore takes beyond that is Python. "
        r"Drift alone would have shown "
        r"\trainingControlVsFloorX{} of the floor as extra time.",
    ),
}  # fmt: skip


def sections(
    summary: dict[str, Any], judgements: Sequence[Judgement],
    provenance: Mapping[str, Mapping[str, Any]], figures: Sequence[str],
) -> str:  # fmt: skip
    """Return a section for each experiment in `provenance`, in its order."""
    return "\n".join(
        _section(name, summary, judgements, origin, name in figures)
        for name, origin in provenance.items()
    )


def _section(
    name: str,
    summary: dict[str, Any],
    judgements: Sequence[Judgement],
    origin: Mapping[str, Any],
    has_figure: bool,
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
        lines += [r"\begin{center}", r"\small", metric_table(found), r"\end{center}"]
    lines += [_verdicts(name, judgements), peers_that_ran(origin.get("peers") or {})]
    return "\n".join(lines) + "\n"


def peers_that_ran(found: Mapping[str, Any]) -> str:
    """Return the peers' versions, and the reasons that the run gave for those left out."""
    if not found:
        return ""
    versions = [
        f"{fmt.escape(name)} {fmt.escape(version)}"
        for name, version in found.items()
        if isinstance(version, str) and name != "dlrover_replicas"
    ]
    lines = [f"Versions: {', '.join(versions)}."]
    for method, reason in dict(found.get("reasons") or {}).items():
        lines.append(
            rf"Left out: {fmt.escape(style.label(method))} (\texttt{{{fmt.escape(reason)}}})."
        )
    if trial := found.get("dlrover_replicas"):
        lines.append(
            "Two ranks that DLRover replicates, of which one loses its memory and loads again: "
            rf"\texttt{{{fmt.escape(str(trial))}}}."
        )
    return "\n".join(lines)


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


def _experiment_of(metric: Mapping[str, Any]) -> str:
    return str(metric["source"]).split("/")[-2]
