"""The parts of one run, opened together. A method replaces one of them, then calls `train`."""

import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor

from effcli import launch
from effcli.engine import advice
from effcli.engine.assemble import assemble
from effcli.engine.closing import close_run, write_report
from effcli.engine.data.opening import text_of
from effcli.engine.device import Device, is_out_of_memory
from effcli.engine.loop import train
from effcli.engine.measure.energy import open_counter
from effcli.engine.measure.evaluate import HeldOut, held_out_loss
from effcli.engine.measure.peak import peak_flops
from effcli.engine.plan import forecast
from effcli.engine.processes import ProcessLost
from effcli.engine.records import (
    Diverged,
    Evaluation,
    Notice,
    Record,
    Saved,
    Stop,
    Watch,
    never,
    unwatched,
)
from effcli.engine.runs import checkpoint
from effcli.engine.runs.claim import claimed
from effcli.engine.runs.logbook import Logbook
from effcli.engine.runs.report import Report, report_of
from effcli.engine.runs.rundir import ENV, status
from effcli.engine.runs.tracking import require, tracked
from effcli.engine.runs.trained import new_model
from effcli.errors import EffError, InputError, Stopped
from effcli.settings.train import TrainSettings


class Session:
    """One run. Entering it opens everything; leaving it frees the run's folder."""

    def __init__(
        self, command: str, settings: TrainSettings, watch: Watch = unwatched, stop: Stop = never
    ) -> None:
        self.command, self.settings = command, settings
        self._watch, self._stop = watch, stop
        self._stack = ExitStack()
        self._evaluated_at = self._saved_at = -1
        self._losses: Tensor | None = None  # at every position of the last look
        self.shape: str | None = None  # of a model that has not the one of the settings
        self.drive: Callable[..., Iterator[Record]] = train

    def __enter__(self) -> "Session":
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if error is not None and not isinstance(error, EffError | KeyboardInterrupt):
            name = f"error-{launch.rank()}.log" if launch.rank() else "error.log"
            (self.run.folder / name).write_text("".join(traceback.format_exception(error)))
        if isinstance(error, InputError):
            self.run.withdraw()  # settings that cannot be run keep no folder from better ones
        self._stack.close()
        self.drive = train  # a method's own knows this session: a circle that keeps the model

    def _open(self) -> None:
        self.corpus = text_of(self.settings)
        settings = self.settings = self.settings.for_text(self.corpus.train.tokens)
        require(settings.track)
        device = Device(settings.device)
        device.processes.share(settings.batch.sequences)
        vocab_size = self.corpus.tokenizer.vocab_size
        model = new_model(settings.model, vocab_size, settings.seed, device)
        token_bytes = self.corpus.tokenizer.token_bytes
        amount = settings.evaluation.tokens
        self.held_out = HeldOut.of(self.corpus.val, token_bytes, model.context, amount)
        self._stop = device.processes.enter(self._stop, settings.seed)
        claim = claimed(self.command, settings, self.corpus, device.processes)
        self.run = self._stack.enter_context(claim)
        device.adopt(model)
        self.parts = assemble(settings, model, self.corpus.train, device)
        watch = self._stack.enter_context(tracked(settings, self.run.folder, self._watch))
        self.log = Logbook(self.run, self.parts.meter, device, watch)

    def changed(self) -> None:
        """Forget that this step was looked at and saved: its model is another one now."""
        self._evaluated_at = self._saved_at = -1
        if self.parts.device.processes.is_first:
            checkpoint.drop(self.run.checkpoints, self.parts.meter.steps)

    def train(self, **facts: Any) -> Report:
        """Spend the budget, recording every step, and report. `facts` are kept with the run."""
        folder = self.run.folder
        if status(folder) == "complete":
            self.log.tell(Notice(f"the run in {folder} is complete already"))
            return report_of(folder)
        self.run.unseal()
        torch.manual_seed(self.settings.seed)
        try:
            self._restore()
            self._prepare(facts)
            self._spend()
            self.look()
            self._save()
            self._close()
        except (Stopped, ProcessLost) as error:
            if not self.parts.device.processes.is_first and isinstance(error, ProcessLost):
                raise
            self._save()
            raise advice.stopped(error, self.command, self._end("stopped")) from None
        except Exception as error:
            if is_out_of_memory(error):
                device, micro = self.parts.device, self.parts.micro
                raise advice.out_of_memory(self.command, folder, micro, device) from error
            raise
        return self._end("complete")

    def _close(self) -> None:
        if self._losses is None:  # the last look was before this process began
            self._held_out_loss()
        assert self._losses is not None
        processes = self.parts.device.processes
        processes.add_up([self._losses])  # each looked at a part, and has zeros elsewhere
        if processes.is_first:
            seen = (self.corpus, self.held_out, self._losses)
            close_run(self.parts, *seen, self.log, self.settings, self._stop)

    def _spend(self) -> None:
        settings, meter = self.settings, self.parts.meter
        self._look_if_due()  # at the untrained model, or again where a signal came between
        for record in self.drive(self.parts, stop=self._stop):
            self.log.book_energy()
            self.log.note(record)
            if isinstance(record, Diverged):
                self._fail(record)
            self._look_if_due()  # before saving: a checkpoint is one that could be looked at
            if meter.is_due(settings.save_every) or meter.steps in settings.save_at:
                self.log.ledger("unfinished", self._unique_tokens())  # for whoever reports a kill
                self._save()

    def _look_if_due(self) -> None:
        if self.parts.meter.is_due(self.settings.eval_every):
            self.look()

    def look(self) -> None:
        """Evaluate, at most once after each step."""
        parts, meter = self.parts, self.parts.meter
        if self._evaluated_at == meter.steps:
            return
        with meter.timing("train"):
            parts.device.synchronize()  # what training still owes
        loss, windows = self._held_out_loss(), len(self.held_out.tokens)
        if not math.isfinite(loss):
            lr = self.settings.optim.lr * parts.schedule(parts.budget.progress(meter))
            diverged = Diverged(meter.steps, f"{loss} on held-out text", "finite", lr)
            self.log.note(diverged)
            self._fail(diverged)
        self._evaluated_at = meter.steps
        bits = self.held_out.bits_per_byte(loss)
        spent = (meter.tokens, meter.spent_flops(), meter.spent_seconds(), self.log.book_energy())
        self.log.note(Evaluation(meter.steps, loss, bits, windows, *spent))
        for told in parts.batches.hear(loss):
            self.log.note(told)
        self.log.ledger("unfinished", self._unique_tokens())

    def _held_out_loss(self) -> float:
        """Nats per token, at the expense of `eval`; the losses of all positions are kept."""
        parts, meter = self.parts, self.parts.meter
        with meter.timing("eval"):
            self._losses = torch.zeros(len(self.held_out.tokens), parts.model.context)
            how = (parts.device, parts.micro, self._stop, self.settings.device.loss_rows)
            loss = held_out_loss(parts.model, self.held_out, *how, self._losses)
        computed = self.held_out.computed(parts.micro)
        meter.charge("eval", parts.model.forward_flops(computed, parts.model.context))
        return loss

    def _end(self, state: str) -> Report:
        self.log.ledger(state, self._unique_tokens())
        self.run.position()
        self.run.seal()
        if self.parts.device.processes.is_first:
            with_page = state == "complete" and self.settings.page
            write_report(self.run, self.parts.device, with_page)
        with suppress(ProcessLost, Stopped):  # one that is gone by now has all that it wanted
            self.parts.device.processes.wait()
        return report_of(self.run.folder)

    def _unique_tokens(self) -> int:
        """Of those trained on: the last batch may have been drawn and not used."""
        return min(self.parts.batches.unique_tokens, self.parts.meter.tokens)

    def _fail(self, record: Diverged) -> None:
        report = self._end("diverged")
        raise advice.diverged(record, self.settings.optim.lr, self.run.checkpoints, report)

    def _prepare(self, facts: dict[str, Any]) -> None:
        """Decide about compilation once per run, write down where it happens, and compile."""
        parts, settings = self.parts, self.settings
        known = self.run.env() if (self.run.folder / ENV).exists() else {}
        processes = parts.device.processes
        peak = processes.first(known.get("peak_flops_per_second") or peak_flops(parts.device))
        ahead = forecast(settings, parts, self.corpus.train.tokens, peak)
        if settings.minutes is None and max(settings.save_at, default=0) > ahead.steps:
            raise InputError(f"save_at: the run ends at step {ahead.steps}")
        wish = {"on": True, "off": False}.get(settings.device.compile, ahead.earns_compiling)
        compiles = processes.first(known.get("compiled", wish))
        self.run.describe(
            {
                "command": self.command,
                "device": parts.device.describe(),
                "compiled": compiles,
                "peak_flops_per_second": peak,
                "parameters": ahead.parameters,
                "optimizer": parts.optimizer.describe(),
                "routing": parts.optimizer.routing(),
                "micro": parts.micro,
                "corpus": self.corpus.identity(),
                **facts,
            }
        )
        self.log.count_energy(open_counter(parts.device.kind, settings.energy))
        if compiles:
            self.log.tell(Notice("compiling the model; the time for it is booked apart"))
            with parts.meter.timing("compile"):
                parts.compile(settings.batch.sequences)

    def _save(self) -> None:
        """Commit a checkpoint of this step, unless there is one."""
        step = self.parts.meter.steps
        if self._saved_at == step or not self.parts.device.processes.is_first:
            return
        state = {
            "parts": self.parts.state_dict(),
            "records": self.run.position(),
            "evaluated_at": self._evaluated_at,
            "wall": self.log.wall(),
            "corpus": self.corpus.hash,
            "asked": self.run.asked(),
            "shape": self.shape,
        }
        kept = (self.settings.keep, self.settings.save_at)
        checkpoint.save(self.run.checkpoints, step, self.parts.model.state_dict(), state, *kept)
        self._saved_at = step
        self.log.tell(Saved(step))

    def _begin_again(self) -> None:
        """From the start: right for a run that never saved, never for one that did."""
        folder = self.run.folder
        if any(self.run.checkpoints.glob("damaged-*")):
            message = f"every checkpoint in {folder} was damaged, so there is nothing to continue"
            raise InputError(message, "start a new run in another --out")
        if self.settings.resume:
            self.log.tell(Notice(f"nothing was saved in {folder} yet: beginning at step 0"))
        self.run.rewind(0)

    def _restore(self) -> None:
        """Continue from the newest whole checkpoint; from the start if none was ever saved."""
        processes = self.parts.device.processes
        if not processes.is_first:
            processes.wait()  # until what is damaged was set aside
        else:
            checkpoint.clean(self.run.checkpoints)
        place, warnings = checkpoint.newest(self.run.checkpoints)
        if processes.is_first:
            processes.wait()
        for warning in warnings:
            self.log.tell(Notice(warning))
        if place is None:
            self._begin_again()
            return
        state = checkpoint.load_state(place)
        if state["corpus"] != self.corpus.hash:
            hint = "name the corpus that it began with, with --data"
            raise InputError(f"the run in {self.run.folder} was begun on another corpus", hint)
        self.run.require_asked(state.get("asked"))
        self.parts.model.load_state_dict(checkpoint.load_model(place, self.parts.device.torch))
        self.parts.load_state_dict(state["parts"])
        self._evaluated_at, self.log.wall_before = state["evaluated_at"], state["wall"]
        self._saved_at = self.parts.meter.steps
        self.run.rewind(state["records"])
        self.log.tell(Notice(f"continuing at step {self.parts.meter.steps}"))
