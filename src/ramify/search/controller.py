"""The controller of a search: samples trials, starts their trainings, reads the results, promotes.

Every decision is a function of the table of trials (`ramify.search.journal`) and is written there before it takes
effect. A controller may therefore be killed at any moment: the next one finds trials that are to be trained but claimed
by no running controller, and continues them. Several controllers may work on one search. Trainings are ordinary
`ramify train` processes, which do not use Optuna.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramify.errors import RamifyError
from ramify.files import parse_json, write_json, write_whole
from ramify.recipe import Recipe, parse_recipe
from ramify.run.launcher import StartedTraining, Training
from ramify.run.lock import RunLock, is_locked
from ramify.run.sessions import Sessions
from ramify.run.stop import Stop
from ramify.search.journal import Journal
from ramify.search.lengths import Estimates
from ramify.search.rungs import rung_steps, to_finish, to_promote
from ramify.search.runs import OrphanTraining, Outcome, arguments, outcome
from ramify.search.samplers import sample
from ramify.search.settings import SearchFolder, Settings
from ramify.search.space import Space
from ramify.search.trials import MEMORY, Trial
from ramify.system import process_start

ATTEMPTS = 3
"""Sessions in a row without a result after which a trial counts as failed."""
UNSUITABLE = 10
"""Trials that may be refused or have an invalid recipe, for each that is trained; then the space hardly fits."""
TRAINING = "training.json"
"""File in the claim of a trial: process number and start time of its training."""


Start = Callable[..., StartedTraining]
"""As `Launcher.start`: (words after `ramify`, log, slot=, name=) -> the training."""


@dataclass(frozen=True)
class Job:
    """A training of a trial by this controller.

    Attributes:
        trial: active.
        slot: 0 to jobs - 1.
        claim: held.
        training: its process.
        sessions: number of lines of sessions.jsonl before it.
    """

    trial: Trial
    slot: int
    claim: RunLock
    training: Training
    sessions: int


@dataclass
class Controller:
    """Runs a search until no trial is left to train, or until a signal.

    Args:
        folder: of the search.
        settings: of the search.
        space: of the search.
        journal: table of trials.
        estimates: of lengths and memory.
        trials: number of trials to train; refused ones and invalid recipes do not count.
        jobs: trainings at the same time.
        start: starts a training.
        stop: requests to stop.
        noted: called with a message for each event.
        poll: seconds between checks of the trainings.
    """

    folder: SearchFolder
    settings: Settings
    space: Space
    journal: Journal
    estimates: Estimates
    trials: int
    jobs: int
    start: Start
    stop: Stop = field(default_factory=Stop)
    noted: Callable[[str], None] = lambda text: None
    poll: float = 0.5

    def __post_init__(self) -> None:
        self._running: list[Job] = []

    def run(self) -> str:
        """Runs the search.

        Returns:
            The reason why it was stopped early; empty if no trial is left to train.

        Raises:
            RamifyError: a training cannot be started, or a file cannot be written. Running trainings are stopped first.
        """
        try:
            while not self.stop.reason:
                self._collect()
                work_left = self._fill()
                if not work_left and not self._running:
                    return ""
                time.sleep(self.poll)
        finally:
            self._stop_trainings()
        return self.stop.reason

    def _fill(self) -> bool:
        """Starts trainings in all free slots; whether this or another controller may still have work."""
        left = True
        while len(self._running) < self.jobs:
            with self.journal.exclusive():
                trial, left = self._next()
                claim = None if trial is None else self._claim(trial)
            if trial is None or claim is None:
                break
            self._begin(trial, claim)
        return left

    def _next(self) -> tuple[Trial | None, bool]:
        """The trial to train next, active in the table, and whether work is left for later where there is none now.

        In this order: a trial whose training was lost, a promotion, a new trial.
        """
        options = self.settings
        known = self.journal.trials()
        own = {job.trial.number for job in self._running}
        active = [trial for trial in known if trial.state == "active"]
        for trial in active:
            if trial.number not in own and not is_locked(self.folder.claim(trial.number)):
                return trial, True
        if (promoted := to_promote(known, options.rungs, options.reduction, options.objectives)) is not None:
            return self._promote(promoted), True
        while sum(not _unsuitable(t) for t in known) < self.trials and not self._is_exhausted(known):
            sampled = self._sample(known)
            if sampled is None or sampled.state == "active":
                return sampled, True
            known.append(sampled)
        if active:
            return None, True
        if (last := to_finish(known, options.rungs, options.objectives)) is not None:
            return self._promote(last), True
        return None, False

    def _is_exhausted(self, known: Sequence[Trial]) -> bool:
        """Whether no further trial can be sampled."""
        if self.settings.sampler == "grid" and self.space.size is not None and len(known) >= self.space.size:
            return True
        return sum(map(_unsuitable, known)) >= UNSUITABLE * self.trials

    def _promote(self, trial: Trial) -> Trial:
        found = self.journal.promote(trial)
        self.noted(f"trial {trial.number}: promoted to rung {found.target + 1} of {self.settings.rungs}")
        return found

    def _sample(self, known: Sequence[Trial]) -> Trial | None:
        """Samples a trial and adds it to the table: active, refused, or failed where its recipe is not valid.

        None if a signal came meanwhile, which may have ended the measurement of its step: it is sampled again.
        """
        options = self.settings
        params, distributions, attributes = sample(options.sampler, options.seed, self.space, known, options.objectives)
        sampled = (params, distributions, attributes)
        try:
            recipe = self.recipe(params)
            steps = self.estimates.steps(recipe)
            memory, excess = None, 0.0
            if recipe.parallel.memory is not None or MEMORY in options.objectives:
                memory, excess = self.estimates.memory(recipe)
        except RamifyError as error:
            if self.stop.reason:
                return None
            trial = self.journal.add(*sampled, steps=0, reason=_one_line(str(error)))
            self.noted(f"trial {trial.number}: it cannot be trained: {trial.reason}")
            return trial
        why = f"needs {memory:.2f} GB, the limit is 90 % of {recipe.parallel.memory:g} GB" if excess else ""
        trial = self.journal.add(*sampled, steps=steps, memory=memory, excess=excess, reason=why)
        said = _text(self.space.values(params)) + (f", {steps} steps" if options.equal == "time" else "")
        self.noted(f"trial {trial.number}: " + (f"refused, {why}" if why else said))
        return trial

    def recipe(self, params: dict[str, Any]) -> Recipe:
        """The recipe of a trial with the keys of the space; its length may change, see `Estimates.with_length`.

        Raises:
            RamifyError: it is not valid.
        """
        content = self.space.trial_recipe(self.space.values(params))
        return parse_recipe(content, "the recipe of the trial")

    def _claim(self, trial: Trial) -> RunLock | None:
        """The lock of a trial; None if another controller holds it."""
        folder = self.folder.claim(trial.number)
        folder.mkdir(exist_ok=True)
        try:
            return RunLock(folder).acquire()
        except RamifyError:
            return None

    def _begin(self, trial: Trial, claim: RunLock) -> None:
        """Starts the training of a trial, or adopts the one of a controller that was killed."""
        number, slot = trial.number, min(set(range(self.jobs)) - {job.slot for job in self._running})
        run, recipe, log = self.folder.run(number), self.folder.recipe(number), self.folder.log(number)
        sessions = len(Sessions(run).lines())
        training: Training | None = self._orphan(number)
        try:
            if training is None:
                whole = self.estimates.with_length(self.recipe(trial.params), trial.steps)
                write_whole(recipe, whole.to_yaml())
                stop_after = rung_steps(trial.steps, self.settings.rungs, self.settings.reduction)[trial.target]
                words = arguments(recipe, run, stop_after if trial.target < self.settings.rungs - 1 else None)
                training = started = self.start(words, log, slot=slot, name=f"trial-{number}")
                about = {"pid": started.pid, "started": process_start(started.pid)}
                write_json(self.folder.claim(number) / TRAINING, about)
        except BaseException:
            claim.release()
            raise
        self._running.append(Job(trial, slot, claim, training, sessions))

    def _orphan(self, number: int) -> OrphanTraining | None:
        """The training of a trial that still runs although its controller does not."""
        run = self.folder.run(number)
        try:
            about = parse_json((self.folder.claim(number) / TRAINING).read_bytes())
        except (OSError, ValueError):
            about = {}
        orphan = OrphanTraining(run, int(about.get("pid", 0)), about.get("started"))
        if orphan.poll() is not None:
            return None
        self.noted(f"trial {number}: its training still runs, without its controller")
        return orphan

    def _collect(self) -> None:
        """Reads the results of trainings that have ended."""
        for job in [job for job in self._running if job.training.poll() is not None]:
            self._running.remove(job)
            with self.journal.exclusive():
                self._record(job)
            job.claim.release()

    def _record(self, job: Job) -> None:
        """Writes the end of a training into the table; an active trial without a result is continued later."""
        trial, rungs = job.trial, rung_steps(job.trial.steps, self.settings.rungs, self.settings.reduction)
        status = None if isinstance(job.training, OrphanTraining) else job.training.poll()
        run, log = self.folder.run(trial.number), self.folder.log(trial.number)
        found = outcome(trial, rungs, run, log, status, job.sessions, self.settings.objectives[0])
        if found.how == "failed" and self._orphan(trial.number) is not None:
            return  # another process trained the run already
        if found.how == "reached":
            self._reached(trial, found)
        elif found.how == "failed":
            self.journal.failed(trial, found.reason)
            self.noted(f"trial {trial.number}: failed: {found.reason}")
        elif not self.stop.reason:
            attempted = self.journal.attempted(trial)
            if attempted.attempts >= ATTEMPTS:
                self.journal.failed(
                    attempted, f"{attempted.attempts} sessions without a result, the last {found.reason}"
                )
            self.noted(f"trial {trial.number}: its training ended {found.reason}; attempt {attempted.attempts}")

    def _reached(self, trial: Trial, found: Outcome) -> None:
        ended = self.journal.reached(trial, found.results)
        result = found.results[-1]
        self.noted(
            f"trial {trial.number}: rung {len(ended.results)} of {self.settings.rungs}, step {result.step} of "
            f"{trial.steps}, metric {result.metric:.4f}, {result.seconds:.0f} s"
        )

    def _stop_trainings(self) -> None:
        """Stops the trainings, which write checkpoints, and waits for them; results that they reached are recorded."""
        for job in self._running:
            job.training.stop()
        while self._running:
            self._collect()
            time.sleep(min(self.poll, 0.05))


def _unsuitable(trial: Trial) -> bool:
    """Whether a trial was never started, because it does not fit into memory or its recipe is not valid."""
    return trial.state == "refused" or (trial.state == "failed" and trial.steps == 0)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(values: dict[str, Any]) -> str:
    """The values of a trial; floats with three digits."""
    return ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
