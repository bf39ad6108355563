"""A callback for `transformers.Trainer`: every step's state in the RAM of two machines.

    trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
    trainer.add_callback(TwinCallback(trainer, replicas=2))
    trainer.train()

Covered: one process, DDP and FSDP2, gradient accumulation, mixed precision, the callbacks that
export their state (early stopping). Not covered: DeepSpeed and FSDP1, which have their own
checkpoints, and hyper-parameter search: one training a job.
"""

import functools
import inspect
import json
import os
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from twinckpt.checkpointer import Checkpointer, SaveHandle
from twinckpt.errors import ConfigurationError
from twinckpt.integrations.rng import RngToContinue

# What `Trainer._run_epoch` is told about the place to resume from.
_PLACE = {"epochs_trained", "steps_trained_in_current_epoch", "resume_from_checkpoint"}
# A Trainer that resumes looks for generators' states in the folder of its checkpoint.
_NO_FOLDER = os.devnull
_MAX_LOGS = 1000


class TwinCallback(TrainerCallback):
    """Restores when training begins, and saves before each step what the step before left.

    Args:
        trainer: the Trainer that it is added to; transformers 5.24 or newer.
        options: the arguments of `Checkpointer`, such as `replicas=2` or `strict=True`.

    A step is saved once its logging, evaluation and saving by the Trainer are over, so that a
    resumed training draws the same random numbers. The Trainer skips the batches that were used,
    as it does when it resumes from a checkpoint of its own (`ignore_data_skip=True`: it does not).
    The newest 1,000 entries of the log history are carried. `handle` is that of the newest save.
    """

    def __init__(self, trainer: Trainer, **options: Any) -> None:
        known = inspect.signature(getattr(Trainer, "_run_epoch", lambda: None)).parameters
        if not known.keys() >= _PLACE:
            raise ConfigurationError(
                "this version of transformers cannot be told where to resume: "
                "pip install 'transformers>=5.24'"
            )
        plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
        if trainer.is_deepspeed_enabled or getattr(plugin, "fsdp_version", 2) == 1:
            raise ConfigurationError(
                "DeepSpeed and FSDP1 put their state together for each checkpoint: use FSDP2 "
                '(fsdp_config={"version": 2}) or DDP'
            )
        self._trainer = trainer
        self._options = options
        self._rng = RngToContinue()
        self._saved_step = 0
        self.checkpointer: Checkpointer | None = None
        self.handle: SaveHandle | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Restore in place, and have the Trainer go on from there; called by the Trainer."""
        trainer = self._trainer
        if self.checkpointer is not None:
            self.checkpointer.close(failed=True)  # the Trainer begins anew, with smaller batches
        optimizer = trainer.optimizer
        parts = {
            "model": trainer.model,
            "optimizer": getattr(optimizer, "optimizer", optimizer),
            "lr_scheduler": trainer.lr_scheduler,
            "trainer": _TrainerProgress(trainer),
            "rng": self._rng,
        }
        scaler = getattr(trainer.accelerator, "scaler", None)
        if scaler is not None:
            parts["scaler"] = scaler
        self.checkpointer = Checkpointer(parts, **self._options)
        step = self.checkpointer.restore()
        if step is not None:
            self._saved_step = step
            vars(trainer)["_run_epoch"] = functools.partial(self._resume_epoch, step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save what the step before left; called by the Trainer."""
        self._rng.apply()
        self._save(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save the last step, and end checkpointing; called by the Trainer."""
        if self.checkpointer is not None:
            self._save(state.global_step)
            self.checkpointer.close()
            self.checkpointer = None
            vars(self._trainer).pop("_run_epoch", None)

    def _save(self, step: int) -> None:
        if self.checkpointer is not None and step > self._saved_step:
            self._saved_step = step
            self.handle = self.checkpointer.save(step)

    def _resume_epoch(self, step: int, *, epoch: int, **arguments: Any) -> None:
        """Stand in for `Trainer._run_epoch`: skip the epochs before `step`, then resume there."""
        trainer = self._trainer
        epochs, updates = divmod(step, arguments["num_update_steps_per_epoch"])
        if epoch < epochs or step >= trainer.state.max_steps:
            return
        del vars(trainer)["_run_epoch"]  # from here on it is the class's own
        if not trainer.args.ignore_data_skip:
            arguments["steps_trained_in_current_epoch"] = (
                updates * trainer.args.gradient_accumulation_steps
            )
        arguments |= {"epochs_trained": epochs, "resume_from_checkpoint": _NO_FOLDER}
        trainer._run_epoch(epoch=epoch, **arguments)


class _TrainerProgress:
    """The Trainer's own state: its counters, sums of losses, logs, and callbacks' states."""

    _COUNTERS = ("epoch", "global_step", "num_input_tokens_seen", "total_flos")
    _BEST = ("best_metric", "best_global_step", "best_model_checkpoint")
    _SUMS = ("_total_loss_scalar", "_globalstep_last_logged", "current_flos")

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._num_logs = -1
        self._logs = "[]"

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, and the loss since the last log."""
        state = self._trainer.state
        if len(state.log_history) != self._num_logs:
            self._num_logs = len(state.log_history)
            self._logs = json.dumps(state.log_history[-_MAX_LOGS:])
        return {
            "state": {name: getattr(state, name) for name in self._COUNTERS + self._BEST},
            "logs": self._logs,
            "sums": {name: getattr(self._trainer, name) for name in self._SUMS},
            "loss": torch.as_tensor(self._trainer._tr_loss),
            "callbacks": [callback.state() for callback in self._exporting()],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a saved state; when to end, and how often to log, this run decides."""
        state = self._trainer.state
        for name, value in saved["state"].items():
            setattr(state, name, value)
        state.log_history = json.loads(saved["logs"])
        for name, value in saved["sums"].items():
            setattr(self._trainer, name, value)
        self._trainer._tr_loss = saved["loss"].to(self._trainer.args.device)
        for callback, exported in zip(self._exporting(), saved["callbacks"], strict=True):
            for name, value in exported["attributes"].items():
                setattr(callback, name, value)

    def _exporting(self) -> list[Any]:
        callbacks = self._trainer.callback_handler.callbacks
        return [callback for callback in callbacks if isinstance(callback, ExportableState)]
