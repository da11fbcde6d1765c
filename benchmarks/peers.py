"""The digits job in training libraries, as in their documentation, without loggers, progress bars and checkpoints."""

from __future__ import annotations

import functools
import logging
import os
import time
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import job
from benchmarks.harness import Contender, Done, MissingError, Work


def loader() -> Any:
    return DataLoader(TensorDataset(*job.data()), batch_size=job.SIZE, shuffle=True)


def lightning(*, barebones: bool) -> Any:
    """A LightningModule; `barebones` is the Trainer's mode for benchmarks, without log()."""
    import lightning

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Digits(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = job.model()

        def training_step(self, batch: Any, index: int) -> Any:
            x, y = batch
            outputs = self.model(x)
            value = F.cross_entropy(outputs, y)
            accuracy = (outputs.argmax(1) == y).float().mean()
            if barebones:
                self.total += value.detach() * len(x)
                self.correct += accuracy * len(x)
            else:
                self.log_dict({"loss": value, "accuracy": accuracy}, on_step=False, on_epoch=True, batch_size=len(x))
            return value

        def on_train_epoch_start(self) -> None:
            self.total, self.correct = torch.zeros(()), torch.zeros(())

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=job.LR)
            scheduler = CosineAnnealingLR(optimizer, T_max=job.STEPS)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    class Clock(lightning.Callback):
        """Time of training, without the Trainer's preparation."""

        def on_train_start(self, *_: Any) -> None:
            self.begin = time.perf_counter()

        def on_train_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.begin

    batches = loader()
    off = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}

    def start() -> Work:
        model, clock = Digits(), Clock()
        options: dict[str, Any] = {"barebones": True} if barebones else off
        trainer = lightning.Trainer(max_epochs=job.EPOCHS, accelerator="cpu", devices=1, gradient_clip_val=job.CLIP,
                                    callbacks=[clock], **options)  # fmt: skip

        def work() -> Done:
            trainer.fit(model, batches)
            n = len(batches.dataset)
            logged = trainer.callback_metrics
            measured = (model.total / n, model.correct / n) if barebones else (logged["loss"], logged["accuracy"])
            return Done(trainer.global_step, *[x.item() for x in measured], seconds=clock.seconds)

        return work

    return start


def ignite() -> Any:
    """An Engine with a scheduler on each iteration, and metrics attached to it."""
    from ignite.engine import Engine, Events
    from ignite.metrics import Accuracy, Average

    batches = loader()
    criterion = nn.CrossEntropyLoss()

    def start() -> Work:
        model = job.model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=job.LR)
        scheduler = CosineAnnealingLR(optimizer, T_max=job.STEPS)

        def update(engine: Any, batch: Any) -> Any:
            x, y = batch
            optimizer.zero_grad()
            outputs = model(x)
            value = criterion(outputs, y)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), job.CLIP)
            optimizer.step()
            return {"loss": value.item(), "y_pred": outputs.detach(), "y": y}

        trainer = Engine(update)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: scheduler.step())
        Average(output_transform=lambda out: out["loss"]).attach(trainer, "loss")
        Accuracy(output_transform=lambda out: (out["y_pred"], out["y"])).attach(trainer, "accuracy")

        def work() -> Done:
            state = trainer.run(batches, max_epochs=job.EPOCHS)
            return Done(state.iteration, float(state.metrics["loss"]), float(state.metrics["accuracy"]))

        return work

    return start


def accelerate() -> Any:
    """The loop of its quick tour: prepare(), accelerator.backward(), metrics gathered."""
    from accelerate import Accelerator

    def start() -> Work:
        accelerator = Accelerator(cpu=True)
        model = job.model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=job.LR)
        scheduler = CosineAnnealingLR(optimizer, T_max=job.STEPS)
        model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(), scheduler)
        criterion = nn.CrossEntropyLoss()
        n = len(batches.dataset)

        def work() -> Done:
            steps = 0
            for _ in range(job.EPOCHS):
                total, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
                for x, y in batches:
                    optimizer.zero_grad()
                    outputs = model(x)
                    value = criterion(outputs, y)
                    accelerator.backward(value)
                    accelerator.clip_grad_norm_(model.parameters(), job.CLIP)
                    optimizer.step()
                    scheduler.step()
                    guesses, labels = accelerator.gather_for_metrics((outputs.argmax(1), y))
                    total += value.detach() * len(x)
                    correct += (guesses == labels).sum()
                    steps += 1
            return Done(steps, total.item() / n, correct.item() / n)

        return work

    return start


def skorch() -> Any:
    """A NeuralNetClassifier with its own callbacks for clipping, schedule and training accuracy."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import EpochScoring, GradientNormClipping, LRScheduler

    inputs, targets = (t.numpy() for t in job.data())

    def start() -> Work:
        net = NeuralNetClassifier(
            job.model(),
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.AdamW,
            lr=job.LR,
            batch_size=job.SIZE,
            max_epochs=job.EPOCHS,
            iterator_train__shuffle=True,
            train_split=None,
            verbose=0,
            callbacks=[
                ("clip", GradientNormClipping(job.CLIP)),
                ("cosine", LRScheduler(CosineAnnealingLR, T_max=job.STEPS, step_every="batch")),
                ("accuracy", EpochScoring("accuracy", on_train=True, name="train_acc", lower_is_better=False)),
            ],
            callbacks__print_log=None,
            callbacks__valid_acc=None,
        ).initialize()

        def work() -> Done:
            net.partial_fit(inputs, targets)
            steps = sum(len(epoch["batches"]) for epoch in net.history)
            return Done(steps, float(net.history[-1, "train_loss"]), float(net.history[-1, "train_acc"]))

        return work

    return start


def keras(*, backend: str) -> Any:
    """compile() and fit()."""
    if backend == "jax":
        import jax  # noqa: F401  # missing without it
    os.environ["KERAS_BACKEND"] = backend
    import keras

    if keras.backend.backend() != backend:
        raise MissingError(f"keras runs on {keras.backend.backend()} here, not on {backend}")
    inputs, targets = (t.numpy() for t in job.data())
    w1, b1, w2, b2 = (w.numpy() for w in job.weights())

    def start() -> Work:
        model = keras.Sequential(
            [keras.Input((64,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)]
        )
        model.set_weights([w1.T, b1, w2.T, b2])
        rate = keras.optimizers.schedules.CosineDecay(job.LR, job.STEPS)
        rule = keras.optimizers.AdamW(rate, weight_decay=job.DECAY, epsilon=1e-8, global_clipnorm=job.CLIP)
        criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=rule, loss=criterion, metrics=["accuracy"])
        clock = _clock(keras)

        def work() -> Done:
            history = model.fit(
                inputs, targets, batch_size=job.SIZE, epochs=job.EPOCHS, shuffle=True, verbose=0, callbacks=[clock]
            ).history
            steps = int(rule.iterations)
            return Done(steps, history["loss"][-1], history["accuracy"][-1], seconds=clock.seconds * job.EPOCHS)

        return work

    return start


def _clock(keras: Any) -> Any:
    class Clock(keras.callbacks.Callback):
        """The epochs after the first, in which a new model's functions are made: the mean of an epoch."""

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 0:
                self.begin = time.perf_counter()

        def on_train_end(self, logs: Any = None) -> None:
            self.seconds = (time.perf_counter() - self.begin) / (job.EPOCHS - 1)

    return Clock()


CONTENDERS: dict[str, Contender] = {
    "Lightning": functools.partial(lightning, barebones=False),
    "Lightning, barebones": functools.partial(lightning, barebones=True),
    "Ignite": ignite,
    "Accelerate": accelerate,
    "skorch": skorch,
    "Keras on torch": functools.partial(keras, backend="torch"),
    "Keras on JAX": functools.partial(keras, backend="jax"),
}
