"""The claims of the seed and the paper as checks on the results, each with a verdict.

    python -m twinckpt.analysis.claims --summary FILE --output FILE

A verdict is one of
- `reproduced`: the same direction, clearly (the whole interval), and the published number lies in
  our 95 % interval, or the effect is larger here;
- `in shape`: the same direction, clearly, but a smaller effect;
- `not reproduced`: neither (a limit, like `< 5 %`, must hold over the whole interval to be
  reproduced, and for the median to be in shape). So a wide interval counts against a claim. One
  sample has none, and is judged by its value alone: look at `n`;
- `not measured`: the metric it needs is not in the summary.
What the paper measured on its cluster and we only predict from its set-up has the evidence
`predicted`: reproduced within 10 % of the published number, in shape within 30 %; a bound ("more
than", "less than") is judged as above.
The command prints every verdict and exits with 0 whatever they are: a verdict is a result.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from twinckpt.analysis.command import run_command
from twinckpt.analysis.summary import by_name, read_summary
from twinckpt.results.atomic import write_text

Verdict = Literal["reproduced", "in shape", "not reproduced", "not measured"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "in shape", "not reproduced", "not measured")
Evidence = Literal["measured", "predicted"]
Rule = Callable[[dict[str, Any]], Verdict]


@dataclass(frozen=True)
class Claim:
    """A published statement, the metric that decides on it, and a remark to bear in mind."""

    name: str
    source: Literal["seed", "paper", "design"]
    statement: str
    metric: str
    rule: Rule
    remark: str
    evidence: Evidence = "measured"


@dataclass(frozen=True)
class Judgement:
    """A claim's verdict and its evidence; `value`, `low` and `high` are None if not measured."""

    name: str
    source: str
    statement: str
    metric: str
    verdict: Verdict
    value: float | None
    low: float | None
    high: float | None
    unit: str
    remark: str
    evidence: str = "measured"


def at_least(published: float, neutral: float) -> Rule:
    """Return the rule for a gain of `published` or more; `neutral` is the value without effect."""

    def rule(metric: dict[str, Any]) -> Verdict:
        low, high = _bounds(metric)
        if low <= neutral:
            return "not reproduced"
        return "reproduced" if high >= published else "in shape"

    return rule


def below(limit: float) -> Rule:
    """Return the rule for less than `limit`: over the whole interval, or only in the median."""

    def rule(metric: dict[str, Any]) -> Verdict:
        _, high = _bounds(metric)
        if high < limit:
            return "reproduced"
        return "in shape" if metric["value"] < limit else "not reproduced"

    return rule


def near(published: float) -> Rule:
    """Return the rule for a prediction of `published`: within 10 % of it, or within 30 %."""

    def rule(metric: dict[str, Any]) -> Verdict:
        error = abs(metric["value"] / published - 1)
        if error <= PRECISE:
            return "reproduced"
        return "in shape" if error <= ROUGH else "not reproduced"

    return rule


def holds(metric: dict[str, Any]) -> Verdict:
    """Judge a bool, which must be true in every sample."""
    return "reproduced" if metric["value"] == 1.0 else "not reproduced"


# How far a prediction may be from the published number.
PRECISE, ROUGH = 0.10, 0.30

CLAIMS = (
    Claim("save_peer", "seed", "saving to RAM is 13.7 times faster than to disk",
          "save_speedup_x", at_least(13.7, 1.0),
          "our RAM copy holds all state and is sealed in the peers' RAM too; the seed's held "
          "the weights only, on one GPU"),
    Claim("save_local", "seed", "the same, copying to the machine's own RAM only",
          "save_local_speedup_x", at_least(13.7, 1.0),
          "the seed's own clock, at equal bytes"),
    Claim("save_stall", "seed", "the same, counting only what the training loop waits",
          "save_stall_speedup_x", at_least(13.7, 1.0),
          "of a loop that goes on at once; beside a step that takes longer, the copy is hidden"),
    Claim("recovery_load", "seed", "loading from RAM is 6.1 times faster than from disk",
          "recovery_speedup_x", at_least(6.1, 1.0),
          "peer's RAM against a cold file, both until live in the model; the agent fetches the "
          "peer's copy while the processes start, the file is read after that"),
    Claim("recovery_total", "seed", "the same, from the kill to the first new step",
          "recovery_total_speedup_x", at_least(6.1, 1.0),
          "includes detection and torchrun's restart, which the seed left out"),
    Claim("throughput_gain", "seed", "training is 100 % faster than with disk checkpoints",
          "throughput_gain_percent", at_least(100.0, 0.0),
          "depends on how often and how slowly the disk side saves"),
    Claim("overhead", "seed", "checkpointing to RAM costs less than 5 % of throughput",
          "throughput_overhead_percent", below(5.0),
          "the seed's target, against training without any checkpoints"),
    Claim("paper_iteration", "paper", "the iteration takes as long with a checkpoint each time "
          "as without (Fig. 7)", "training_overhead_percent", below(1.0),
          "here ranks, agents and replication share the same CPU cores"),
    Claim("paper_save", "paper", "checkpoints 65 times faster than to remote storage (Fig. 11)",
          "save_speedup_x", at_least(65.0, 1.0),
          "a local disk is not the paper's 20 Gbps remote storage"),
    Claim("paper_blocking", "paper", "checkpoint traffic sent first lengthens the iteration by "
          "10.1 % (Fig. 16)", "interleaving_blocking_overhead_percent", at_least(10.1, 0.0),
          "over emulated links; how much is a matter of their rate"),
    Claim("paper_no_pipeline", "paper", "interleaved without a pipeline, it lengthens it by 3.5 % "
          "(Fig. 16)", "interleaving_no_pipeline_overhead_percent", at_least(3.5, 0.0),
          "the same; what the schedule itself predicts stands below the section's figure"),
    Claim("paper_naive", "paper", "naive interleaving needs more than the reserved buffer "
          "(Fig. 16)", "interleaving_naive_buffer_x", at_least(1.0, 1.0),
          "the paper's ran out of GPU memory; here the schedule says how large a buffer it takes"),
    Claim("paper_schedule", "paper", "the full schedule adds nothing to the iteration (Fig. 16)",
          "interleaving_full_schedule_overhead_percent", below(1.0),
          "within 1 % over the whole interval, which takes quiet cores"),
    *(
        Claim(f"paper_{name}", "paper", statement, metric, rule, remark, "predicted")
        for name, statement, metric, rule, remark in (
            ("mt_nlg", "MT-NLG 530B: 42 minutes for a checkpoint at 20 Gbps (section 1)",
             "paper_mt_nlg_checkpoint", near(42), "12 bytes a parameter, at line rate"),
            ("mt_nlg_wasted", "MT-NLG 530B: 105 minutes wasted by a failure (section 1)",
             "paper_mt_nlg_wasted", near(105), "Eq. 1 with checkpoints back to back"),
            ("opt175b_lost", "OPT-175B: 178,000 GPU-hours lost to 110 failures (section 2)",
             "paper_opt175b_lost", near(178_000),
             "Eq. 1 with checkpoints every three hours, since the interval is not published"),
            ("state_bytes", "GPT-2 100B: 9.4 GB of state a GPU (Fig. 7)", "paper_state_bytes",
             near(9.4), "12 bytes a parameter, counted from the model's shape"),
            ("traffic", "checkpoint traffic under 3 s, where the network idles for 10 s (Fig. 8)",
             "paper_traffic", below(3.0), "at line rate"),
            ("recovery_k2", "93.3 % recovery from RAM when 2 of 16 machines are lost (Fig. 9)",
             "paper_recovery_k2", near(93.3), "counted exactly"),
            ("recovery_k3", "80.0 % recovery from RAM when 3 of 16 machines are lost (Fig. 9)",
             "paper_recovery_k3", near(80.0), "counted exactly"),
            ("ring_k3", "60.0 % with a ring when 3 of 16 machines are lost (Fig. 9)",
             "paper_ring_k3", near(60.0),
             "what the paper plots is a union bound; counted exactly it is a little more"),
            ("wasted", "wasted time more than 13 times below HighFreq's (Fig. 10)",
             "paper_wasted_ratio", at_least(13, 1.0),
             "by Eq. 1, which leaves restart out; end to end it is far less"),
            ("software", "a software failure costs 1.5 iterations (Fig. 10)",
             "paper_software_wasted", near(1.5), "by Eq. 1, with a checkpoint every iteration"),
            ("time_100", "checkpoints 65 times faster than remote storage at 100 Gbps (Fig. 11)",
             "paper_checkpoint_time_100", near(65),
             "at line rate, which the paper's network did not reach"),
            ("time_400", "more than 250 times faster at 400 Gbps (Fig. 11)",
             "paper_checkpoint_time_400", at_least(250, 1.0), "at line rate"),
            ("highfreq", "HighFreq checkpoints every 9 iterations (section 7.1)",
             "paper_highfreq_interval", near(9), "bytes over storage bandwidth, rounded up"),
            ("frequency", "checkpoints 8 times as often as HighFreq (Fig. 12)",
             "paper_frequency_highfreq", near(8), "against HighFreq's bandwidth bound"),
            ("frequency_strawman", "more than 170 times as often as Strawman (Fig. 12)",
             "paper_frequency_strawman", at_least(170, 1.0), "three hours over one iteration"),
            ("total_software", "about 7 minutes to recover from a software failure (Fig. 14)",
             "paper_software_total", near(7), "the sum of the paper's own durations"),
            ("total_hardware", "about 12 minutes to recover from a hardware failure (Fig. 14)",
             "paper_hardware_total", near(12), "the same with the middle of 4 to 7 minutes"),
            ("goodput", "more effective training time than HighFreq at 1,000 instances (Fig. 15)",
             "goodput_gain_1000_x", at_least(1.0, 1.0),
             "simulated, 1.5 % of the machines failing a day"),
        )
    ),
    Claim("kills", "design", "every set of machines that is killed loses what the placement says",
          "placement_kills_as_predicted", holds,
          "worker agents with sealed shards, killed for real"),
    Claim("soak", "design",
          "under random failures the loss curve is that of the undisturbed run, bit for bit",
          "soak_loss_identical", holds, "every step that was trained, also those trained twice"),
    *(
        Claim(f"identical_{failure}", "design",
              f"after {words} training ends with the same parameters, bit for bit",
              f"training_{failure}_identical", holds,
              "model, optimizer, RNG and data position restored")
        for failure, words in (
            ("rank_loss", "the loss of a rank"),
            ("machine_loss", "the loss of a machine"),
            ("group_loss", "the loss of a whole replica group"),
        )
    ),
)  # fmt: skip


def judge(summary: dict[str, Any]) -> list[Judgement]:
    """Return every claim's verdict, in the order of `CLAIMS`; none is left out."""
    metrics = by_name(summary)
    judgements = []
    for claim in CLAIMS:
        metric = metrics.get(claim.metric)
        judgements.append(
            Judgement(
                name=claim.name,
                source=claim.source,
                statement=claim.statement,
                metric=claim.metric,
                verdict="not measured" if metric is None else claim.rule(metric),
                value=None if metric is None else metric["value"],
                low=None if metric is None else metric["low"],
                high=None if metric is None else metric["high"],
                unit="" if metric is None else metric["unit"],
                remark=claim.remark,
                evidence=claim.evidence,
            )
        )
    return judgements


def read_claims(path: Path) -> list[Judgement]:
    """Read the verdicts that the command wrote; raises `ValueError` naming the file."""
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))["claims"]
        return [Judgement(**record) for record in records]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file of claims ({error})") from None


def as_lines(judgements: list[Judgement]) -> list[str]:
    """Return one line per claim, then the count of each verdict."""
    lines = []
    for one in judgements:
        value = "" if one.value is None else f" ({one.metric} = {one.value:.4g} {one.unit})"
        lines.append(f"{one.verdict:15} {one.source:6} {one.statement}{value}")
    counts = (f"{sum(one.verdict == v for one in judgements)} {v}" for v in VERDICTS)
    return [*lines, ", ".join(counts)]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--summary", type=Path, required=True, help="summary.json to judge")
    parser.add_argument("--output", type=Path, required=True, help="claims.json to write")
    options = parser.parse_args(arguments)
    judgements = judge(read_summary(options.summary))
    records = {"claims": [asdict(one) for one in judgements]}
    write_text(options.output, json.dumps(records, indent=2) + "\n")
    print("\n".join(as_lines(judgements)))
    return 0


def _bounds(metric: dict[str, Any]) -> tuple[float, float]:
    # Without an interval (one sample), the value is both bounds.
    value = metric["value"]
    low, high = metric["low"], metric["high"]
    return (value if low is None else low, value if high is None else high)


if __name__ == "__main__":
    run_command(main)
