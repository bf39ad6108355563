"""A `Trainer` with the callback, killed twice; then the same training left alone, to compare."""

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import (
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from twinckpt.integrations.huggingface import TwinCallback

# In the middle of an epoch, and between two, right after an evaluation.
KILLED_AT = (8, 12)
ROWS = [torch.randint(32, (8,), generator=torch.Generator().manual_seed(row)) for row in range(21)]
DATA = [{"input_ids": row, "labels": row} for row in ROWS]


class Kill(TrainerCallback):
    """Ends the process without warning once the step is committed."""

    def __init__(self, twin):
        self.twin = twin

    def on_step_begin(self, args, state, control, **_):
        if [state.global_step] == list(KILLED_AT)[restart : restart + 1]:
            assert self.twin.handle.wait() == "committed"
            os.kill(os.getpid(), signal.SIGKILL)


class Losses(TrainerCallback):
    """Notes the steps of this process."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, **_):
        self.steps.append((state.global_step, state.epoch))


def make_trainer(folder):
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="no",
        metric_for_best_model="loss",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=7,
    )
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.1,
    )
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=DATA, eval_dataset=DATA)
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=50))
    return trainer


def outcome(trainer):
    """What must not differ by a bit."""
    optimizer = trainer.optimizer.state_dict()["state"].values()
    logs = [
        {key: value for key, value in entry.items() if "runtime" not in key and "per_s" not in key}
        for entry in trainer.state.log_history
    ]
    patience = [
        c for c in trainer.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)
    ]
    return {
        "model": [tensor.clone() for tensor in trainer.model.state_dict().values()],
        "optimizer": [tensor for state in optimizer for tensor in state.values()],
        "logs": logs,
        "rates": trainer.lr_scheduler.get_last_lr(),
        "patience": patience[0].early_stopping_patience_counter,
        "best": trainer.state.best_metric,
        "random": [torch.rand(4)],
    }


def assert_same(found, expected):
    for name, value in expected.items():
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            assert all(map(torch.equal, found[name], value)), name
        else:
            assert found[name] == value, (name, found[name], value)


restart = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
folder = Path(sys.argv[1])
trainer = make_trainer(folder)
twin, steps = TwinCallback(trainer, replicas=1), Losses()
for callback in (twin, Kill(twin), steps):
    trainer.add_callback(callback)
trainer.train()
resumed = outcome(trainer)
assert steps.steps[0][0] == KILLED_AT[-1] + 1, steps.steps

undisturbed = make_trainer(folder)
steps_alone = Losses()
undisturbed.add_callback(steps_alone)
undisturbed.train()
assert steps_alone.steps[-len(steps.steps) :] == steps.steps
assert_same(resumed, outcome(undisturbed))
(folder / "done").write_text(str(restart))
