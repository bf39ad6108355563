"""A callback for `lightning.pytorch.Trainer`: every step's state in the RAM of two machines.

    trainer = Trainer(..., callbacks=[TwinCallback(replicas=2)])
    trainer.fit(module, data)

Covered: one device, DDP and FSDP2 (`ModelParallelStrategy`), gradient accumulation, several
optimizers, mixed precision, the states of other callbacks. Not covered: `FSDPStrategy` and
`DeepSpeedStrategy`, which have their own checkpoints, and averages of `self.log(on_epoch=True)`
in the epoch that is resumed, which Lightning keeps in no checkpoint.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

from twinckpt.checkpointer import Checkpointer, SaveHandle
from twinckpt.errors import ConfigurationError
from twinckpt.integrations.rng import RngNoted, RngToContinue


class TwinCallback(Callback):
    """Restores when fitting begins, and saves after each optimizer step.

    Args:
        options: the arguments of `Checkpointer`, such as `replicas=2` or `strict=True`.

    What is in RAM beats a `ckpt_path`, which serves the first start. A step after which Lightning
    validates, or ends its epoch, is saved after that. In the epoch that is resumed, the batches
    that were used are loaded again and dropped, unless all data loaders have a state of their own.
    `handle` is that of the newest save.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._rng = RngToContinue()
        self._rng_of_epoch = RngNoted()
        self._is_resuming = False
        self._saved_step = 0
        self.checkpointer: Checkpointer | None = None
        self.handle: SaveHandle | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore in place what this fit needs; called by Lightning."""
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy):
            raise ConfigurationError(
                f"{type(trainer.strategy).__name__} puts its state together for each checkpoint: "
                "use ModelParallelStrategy (FSDP2) or DDPStrategy"
            )
        self._rng_of_epoch.note()  # of the first epoch, whose iteration begins before its hook
        self.checkpointer = Checkpointer(
            {
                "module": pl_module,
                "optimizers": list(trainer.optimizers),
                "schedulers": [config.scheduler for config in trainer.lr_scheduler_configs],
                "precision": trainer.precision_plugin,
                "loops": trainer.fit_loop,
                "callbacks": _States(trainer.callbacks),
                "rng": self._rng,
                "rng_of_epoch": self._rng_of_epoch,
            },
            **self._options,
        )
        step = self.checkpointer.restore()
        if step is not None:
            self._saved_step = step
            self._is_resuming = True
            trainer._checkpoint_connector._loaded_checkpoint = {}  # an older state than this
            progress = trainer.fit_loop.epoch_progress
            if progress.current.processed == progress.current.started:
                # Saved between two epochs. Lightning would end the one that has ended again.
                progress.increment_completed()
                trainer.fit_loop.restarting = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go to the batch to continue with; called by Lightning."""
        if not self._is_resuming:
            return
        loop: Any = trainer.fit_loop
        fetcher, loaders = loop._data_fetcher, loop._combined_loader
        num_used = loop.epoch_loop.batch_progress.current.ready if loop.restarting else 0
        if not all(hasattr(loader, "state_dict") for loader in loaders.flattened):
            if num_used:
                self._rng_of_epoch.apply()
            else:
                self._rng.apply()
                self._rng_of_epoch.note()
            iter(fetcher)  # in the order of this epoch
            for _ in range(num_used):
                next(fetcher)
            fetcher.fetched = 0  # Lightning adds what was used
        self._rng.apply()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the order of this epoch's batches is drawn from; called by Lightning."""
        if trainer.current_epoch > 0 and not self._is_resuming:
            self._rng_of_epoch.note()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the step, unless a validation or the epoch's end follows; called by Lightning."""
        self._is_resuming = False
        loop: Any = trainer.fit_loop
        ends_epoch = loop.epoch_loop.batch_progress.is_last_batch
        if not ends_epoch and not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the step before the validation; called by Lightning."""
        if (
            not trainer.sanity_checking
            and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        ):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step of the epoch; called by Lightning."""
        self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave what was saved to the process that follows; called by Lightning."""
        self._close(failed=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End checkpointing; called by Lightning."""
        self._close()

    def _save(self, trainer: Trainer) -> None:
        if self.checkpointer is not None and trainer.global_step > self._saved_step:
            self._saved_step = trainer.global_step
            self.handle = self.checkpointer.save(self._saved_step)

    def _close(self, failed: bool = False) -> None:
        checkpointer, self.checkpointer = self.checkpointer, None
        if checkpointer is not None:
            checkpointer.close(failed)


class _States:
    """The states of all callbacks that have one."""

    def __init__(self, callbacks: list[Callback]) -> None:
        self._callbacks = callbacks

    def state_dict(self) -> dict[str, Any]:
        """Return them by the callbacks' keys."""
        states = {callback.state_key: callback.state_dict() for callback in self._callbacks}
        return {key: state for key, state in states.items() if state}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Give each callback its own."""
        for callback in self._callbacks:
            if callback.state_key in states:
                callback.load_state_dict(states[callback.state_key])
