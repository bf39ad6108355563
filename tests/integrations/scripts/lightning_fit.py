"""A Lightning `Trainer` with the callback, killed thrice; then the same one left alone."""

import os
import signal
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader, TensorDataset

from twinckpt.integrations.lightning import TwinCallback

# In the middle of an epoch; right after a validation; at an epoch's end.
KILLED_AT = (4, 8, 12)
DATA = TensorDataset(torch.randn(44, 8, generator=torch.Generator().manual_seed(0)))


class Net(LightningModule):
    """Dropout and batch statistics: random numbers, and state that the optimizer does not own."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(16, 8),
        )

    def training_step(self, batch, batch_idx):
        loss = (self.net(batch[0]) - batch[0]).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self.net(batch[0]) - batch[0]).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        by_step = {
            "scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=15),
            "interval": "step",
        }
        return [optimizer], [by_step]

    def train_dataloader(self):
        return DataLoader(DATA, batch_size=4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(DATA, batch_size=22)


class Kill(Callback):
    """Ends the process without warning once the step is committed."""

    def __init__(self, twin):
        self.twin = twin

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in KILLED_AT[restart : restart + 1] and self.twin.handle is not None:
            assert self.twin.handle.wait() == "committed"
            os.kill(os.getpid(), signal.SIGKILL)


class Batches(Callback):
    """Notes what this process was trained on, and where."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        where = trainer.current_epoch, batch_idx, trainer.global_step
        self.seen.append((*where, batch[0].sum().item(), torch.rand(()).item()))


def fit(*callbacks):
    """Train three epochs of 11 batches, two a step; return the trainer and what must not differ."""
    seed_everything(7, verbose=False)
    batches, stopping = Batches(), EarlyStopping("val_loss", patience=50)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        accumulate_grad_batches=2,
        val_check_interval=4,
        callbacks=[*callbacks, stopping, batches],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Net()
    trainer.fit(module)
    optimizer = trainer.optimizers[0].state_dict()["state"].values()
    return batches.seen, {
        "module": list(module.state_dict().values()),
        "optimizer": [tensor for state in optimizer for tensor in state.values()],
        "rates": trainer.lr_scheduler_configs[0].scheduler.get_last_lr(),
        "stopping": stopping.state_dict(),
        "steps": trainer.global_step,
        "epoch": trainer.current_epoch,
        "random": [torch.rand(4)],
    }


def assert_same(found, expected):
    """Compare bit for bit."""
    for name, value in expected.items():
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            assert all(map(torch.equal, found[name], value)), name
        else:
            assert found[name] == value, (name, found[name], value)


restart = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
twin = TwinCallback(replicas=1)
seen, resumed = fit(twin, Kill(twin))
seen_alone, undisturbed = fit()
assert len(seen) < len(seen_alone)
assert seen_alone[-len(seen) :] == seen, (seen_alone, seen)
assert_same(resumed, undisturbed)
(Path(sys.argv[1]) / "done").write_text(str(restart))
