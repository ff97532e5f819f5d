"""One run, from the config to the adapter: load, check, train, evaluate, save, give out."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers

from premask.errors import UsageError
from premask.feed.loader import Loader
from premask.store.reader import Prepared, open_prepared
from premask_trainer.checkpoint import (
    checkpoints,
    load_checkpoint,
    read_state,
    replace_folder,
    save_adapter,
    save_checkpoint,
)
from premask_trainer.config import TrainConfig
from premask_trainer.dataset import Sources, identity, load_tokenizer, require_same, sources_of
from premask_trainer.evaluation import Prompt, answer, evaluate, prompts_of
from premask_trainer.export import merge_adapter
from premask_trainer.guards import Guards
from premask_trainer.loop import Clock, Learner, record_of
from premask_trainer.model import Model, load_model
from premask_trainer.progress import Progress, Silent, progress_for
from premask_trainer.ranks import Ranks, joined_ranks
from premask_trainer.records import Records
from premask_trainer.selftest import check_isolation

VALIDATION = "validation"
CHECKPOINTS, BEST = "checkpoints", "best"
SIGTERM = "SIGTERM; the same command with --resume goes on"
"""Why a run ended that somebody else ended."""

FIRST = {"records": {}, "best": {"loss": None, "step": 0, "worse": 0}}
"""Where a run begins."""

LIBRARIES = ("premask", "torch", "transformers", "peft", "numpy")
"""Whose versions a checkpoint states."""


def train(
    config: TrainConfig, *, resume: bool = False, other_data: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Train, and return the summary: JSON types, empty on all ranks but the first.

    `resume` goes on from the newest checkpoint in `config.out`, if there is one; with `other_data` also where the
    dataset is another one by now. SIGTERM ends the run after the step at hand, with a checkpoint. Raises PremaskError.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with _stop_at_sigterm() as asked, joined_ranks() as ranks, ExitStack() as stack:
        run = _prepare(config, ranks, resume, other_data)
        progress = progress_for(run.total, run.loader.position, silent=quiet) if ranks.first else Silent()
        stack.callback(progress.close)
        if run.records:
            stack.callback(run.records.close)
        progress.note(f"steps {run.loader.position + 1:,} to {run.total:,}, {run.loader.steps_per_epoch:,} an epoch")
        _train(run, progress, asked)
        progress.close()
        return _finish(run)


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything that one run is made of."""

    config: TrainConfig
    ranks: Ranks
    model: Model
    tokenizer: Any
    learner: Learner
    loader: Loader
    validation: Loader | None
    sources: Sources
    prompts: list[Prompt]
    identity: dict[str, Any]
    records: Records | None
    """None on all ranks but the first."""
    total: int
    """Steps from the first to the last, also those of an earlier process."""
    best: dict[str, Any]
    """Loss and step of the best evaluation, and how many worse ones came since."""
    stopped: str | None = None
    """Why the run ended before its last step."""

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return Path(self.config.out)

    def due(self, every: int | None) -> bool:
        """Whether something is due that is done every so many steps (every epoch), and after the last one."""
        done = self.loader.position
        return done % (every or self.loader.steps_per_epoch) == 0 or done == self.total


@contextmanager
def _stop_at_sigterm() -> Iterator[list[int]]:
    """A list that SIGTERM adds to, instead of ending the process."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _prepare(config: TrainConfig, ranks: Ranks, resume: bool, other_data: bool) -> Run:
    """Load and check everything, what is cheap first."""
    prepared, out = open_prepared(Path(config.data)), Path(config.out)
    known = identity(prepared)
    newest = _newest(out, resume)
    saved: dict[str, Any] = read_state(newest) if newest else FIRST
    if newest and not other_data:
        require_same(saved["identity"], known, newest)
    loader, validation = _loaders(config, prepared, ranks)
    tokenizer = load_tokenizer(prepared, config.tokenizer)
    model = load_model(config, ranks.device)
    if len(tokenizer) > len(model.head.weight):
        raise UsageError(
            f"model {config.model}: expected embeddings for the {len(tokenizer)} tokens of the dataset's tokenizer, "
            f"found {len(model.head.weight)}; prepare the data with this model's own tokenizer"
        )
    check_isolation(model, prepared["train"])
    total = config.max_steps or len(loader)
    learner = Learner(config, model, ranks, total)
    if newest:
        load_checkpoint(newest, model, learner.training)
        learner.guards = Guards(**saved["guards"] | {"divergence": config.divergence})
        loader.load_state_dict(saved["loader"] | ({"fingerprint": loader.fingerprint} if other_data else {}))
    records = Records(out, saved["records"], tensorboard=config.tensorboard) if ranks.first else None
    return Run(
        config=config,
        ranks=ranks,
        model=model,
        tokenizer=tokenizer,
        learner=learner,
        loader=loader,
        validation=validation,
        sources=sources_of(prepared),
        prompts=list(prompts_of(prepared[VALIDATION], config.sample_prompts)) if config.sample_every else [],
        identity=known,
        records=records,
        total=total,
        best=saved["best"],
    )


def _newest(out: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from. UsageError where there are any and nobody said what to do with them."""
    found = checkpoints(out / CHECKPOINTS)
    if found and not resume:
        raise UsageError(
            f"{out}: expected an empty folder, found checkpoints of an earlier run, the last {found[-1].name}; go on "
            "from there with --resume, or give another --out"
        )
    return found[-1] if found else None


def _loaders(config: TrainConfig, prepared: Prepared, ranks: Ranks) -> tuple[Loader, Loader | None]:
    """The loaders of the two splits; there may be nothing to validate on."""
    of_rank = {"rank": ranks.rank, "world_size": ranks.world_size, "device": ranks.device}
    sizes = {"batch_size": config.batch_size, "micro_batch_size": config.micro_batch_size}
    loader = prepared.loader("train", epochs=config.epochs, seed=config.seed, **sizes, **of_rank)
    if config.max_steps is not None:
        loader.epochs = -(-config.max_steps // loader.steps_per_epoch)
    if VALIDATION in prepared.splits and len(prepared[VALIDATION]):
        return loader, prepared.loader(VALIDATION, shuffle=False, **sizes, **of_rank)
    for name in ("early_stopping", "sample_every", "evaluate_every"):
        if getattr(config, name) is not None:
            raise UsageError(f"{name}: needs a validation split, and {config.data} has none; prepare it with one")
    return loader, None


def _train(run: Run, progress: Progress, asked: list[int]) -> None:
    """Step after step, until there are no more or the run is stopped."""
    clock = Clock(run.loader)
    with closing(clock):
        while run.loader.position < run.total and run.stopped is None:
            step = clock.next()
            update = run.learner.update(step, stop=bool(asked))
            record = record_of(step, update, clock, run.model.device)
            if run.records:
                run.records.metrics(record)
            progress.step(record)
            if update.stop:
                run.stopped = SIGTERM
            elif run.validation and run.due(run.config.evaluate_every):
                _evaluate(run, run.validation, progress)
            if run.prompts and run.due(run.config.sample_every):
                _sample(run, progress)
            if run.stopped or run.due(run.config.save_every):
                _save(run)
    if run.stopped:
        progress.note(f"stopped after step {run.loader.position:,}: {run.stopped}")


def _evaluate(run: Run, validation: Loader, progress: Progress) -> None:
    """Evaluate; keep the adapter if it is the best so far; stop if it has been worse for long enough."""
    found, step, best = evaluate(run.model, validation, run.sources, run.ranks), run.loader.position, run.best
    better = best["loss"] is None or found.loss < best["loss"]
    run.best = {"loss": found.loss, "step": step, "worse": 0} if better else {**best, "worse": best["worse"] + 1}
    if run.records:
        run.records.metrics({"step": step, "validation": {"loss": found.loss, "by_source": found.by_source}})
        if better:
            with replace_folder(run.out / BEST) as partial:
                save_adapter(run.model, partial)
    progress.note(f"step {step:,}: validation loss {found.loss:.4f}" + (", the best so far" if better else ""))
    if run.best["worse"] == run.config.early_stopping:
        run.stopped = f"{run.config.early_stopping} evaluations without a better loss"


def _sample(run: Run, progress: Progress) -> None:
    """Answers to the held-out prompts, by the first rank."""
    if run.records:
        for prompt in run.prompts:
            said = answer(run.model, run.tokenizer, prompt, run.config.sample_tokens)
            run.records.sample({"step": run.loader.position, **said})
            progress.note(f"source row {said['source_row']}: {said['answer']}")


def _save(run: Run) -> None:
    if run.records:
        state = {
            "step": run.loader.position,
            "loader": run.loader.state_dict(),
            "identity": run.identity,
            "guards": run.learner.guards.state(),
            "best": run.best,
            "records": run.records.sizes(),
            "config": run.config.model_dump(mode="json"),
            "versions": {name: version(name) for name in LIBRARIES},
        }
        folder = run.out / CHECKPOINTS
        save_checkpoint(folder, run.model, run.learner.training, state, run.config.keep_checkpoints)
    run.ranks.wait()


def _finish(run: Run) -> dict[str, Any]:
    """Give out the adapter, merged too if asked for, unless the run was cut short; and sum it up."""
    if not run.ranks.first:
        return {}
    summary = {"out": str(run.out), "steps": run.loader.position, "stopped": run.stopped, "best": run.best}
    if run.stopped == SIGTERM:
        return summary
    adapter = run.out / "adapter"
    with replace_folder(adapter) as partial:
        if run.config.early_stopping:
            shutil.copytree(run.out / BEST, partial, dirs_exist_ok=True)
        else:
            save_adapter(run.model, partial)
        run.tokenizer.save_pretrained(str(partial))
    summary["adapter"] = str(adapter)
    if run.config.merge == "16bit":
        summary["merged"] = str(run.out / "merged")
        merge_adapter(run.config.model, adapter, run.out / "merged", run.tokenizer)
    return summary
