"""The table of trials on disk: a study of Optuna, in a journal file or an SQL database, that controllers share.

A trial is written with all its parameters at once, so that it exists completely or not at all. Its
progress is one attribute, which changes as a whole. Writers hold the lock of the search (`Journal.exclusive`).
`optuna-dashboard` reads the same file; paused trials appear there as running, since Optuna cannot continue a pruned
trial.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from ramify.errors import RamifyError
from ramify.run.lock import RunLock
from ramify.search.trials import RungResult, State, Trial

NAME = "journal.log"
EXCESS = "memory"
"""Name of Optuna's constraint: GB above the limit; a trial that violates it is infeasible."""
PROGRESS = "progress"
"""Attribute of a trial: target rung, results, attempts."""
GRACE = 5
"""Seconds after which Optuna's lock of the journal counts as left behind by a killed process. A line takes
milliseconds, and controllers also hold the lock of the search; Optuna's default is 30."""
WAIT = 900.0
"""Seconds to wait for other controllers, which hold the lock while they sample and plan a trial, and with
`--equal time` measure its step: for at most 600 s, see `ramify.bench.spawn`."""


class Journal:
    """The table of trials of one search.

    Args:
        folder: of the search.
        url: of an SQL database; empty: a journal file in the folder.
        study: name of the study.
        objectives: values to minimise.
        rungs: number of rungs; a trial with so many results is complete.

    Raises:
        RamifyError: the database cannot be opened.
    """

    def __init__(self, folder: Path, url: str, study: str, objectives: Sequence[str], rungs: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._folder, self._objectives, self._rungs = folder, objectives, rungs
        with self.exclusive():
            self._storage = _open(folder / NAME, url)
            try:
                self._study = self._storage.get_study_id_from_name(study)
            except KeyError:
                self._study = self._storage.create_new_study([StudyDirection.MINIMIZE] * len(objectives), study)
            for trial in self.trials():
                if trial.state == "complete":  # its controller was killed before it told Optuna
                    self._tell(trial)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Context in which no other controller writes; the lock of a dead controller is taken over.

        Raises:
            RamifyError: another controller holds the lock for longer than `WAIT`.
        """
        lock, deadline = RunLock(self._folder), time.monotonic() + WAIT
        while True:
            try:
                lock.acquire()
                break
            except RamifyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        try:
            yield
        finally:
            lock.release()

    def trials(self) -> list[Trial]:
        """All trials, by number."""
        return [_as_trial(frozen, self._rungs) for frozen in self._storage.get_all_trials(self._study)]

    def add(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        system_attrs: Mapping[str, Any],
        *,
        steps: int,
        memory: float | None = None,
        excess: float = 0.0,
        reason: str = "",
    ) -> Trial:
        """Adds a trial that is active, or refused or failed with a `reason`.

        Args:
            params, distributions, system_attrs: of `ramify.search.samplers.sample`.
            steps: of its whole run.
            memory: GB of the fullest rank by the plan, if known.
            excess: GB above the limit; above 0 the trial is refused.
            reason: why it was refused, or why its recipe is not valid.
        """
        state = TrialState.PRUNED if excess > 0 else TrialState.FAIL if reason else TrialState.RUNNING
        template = create_trial(
            state=state,
            params=dict(params),
            distributions=dict(distributions),
            system_attrs=dict(system_attrs),
            user_attrs={"steps": steps, "memory": memory, "reason": reason},
            constraints={EXCESS: excess} if memory is not None else None,
        )
        return self._trial(self._storage.create_new_trial(self._study, template))

    def promote(self, trial: Trial) -> Trial:
        """Makes a paused trial active, for the next rung."""
        return self._progress(replace(trial, target=len(trial.results)))

    def attempted(self, trial: Trial) -> Trial:
        """Records a session that ended without a result."""
        return self._progress(replace(trial, attempts=trial.attempts + 1))

    def reached(self, trial: Trial, results: Sequence[RungResult]) -> Trial:
        """Records results at the rungs after those that the trial has reached."""
        found = self._progress(replace(trial, results=(*trial.results, *results), attempts=0))
        self._tell(found)
        return found

    def failed(self, trial: Trial, reason: str) -> Trial:
        """Records that a trial ended with an error; it has no value."""
        self._storage.set_trial_user_attr(self._id(trial), "reason", reason)
        self._storage.set_trial_state_values(self._id(trial), TrialState.FAIL)
        return self._trial(self._id(trial))

    def _tell(self, trial: Trial) -> None:
        """Tells Optuna the results, for other programs that read the study."""
        key = self._id(trial)
        frozen = self._storage.get_trial(key)
        if frozen.state.is_finished():
            return
        if len(self._objectives) == 1:  # Optuna has intermediate values for one objective only
            for rung, result in enumerate(trial.results):
                if rung not in frozen.intermediate_values:
                    self._storage.set_trial_intermediate_value(key, rung, result.metric)
        if trial.state == "complete":
            self._storage.set_trial_state_values(key, TrialState.COMPLETE, trial.objectives(self._objectives))

    def _progress(self, trial: Trial) -> Trial:
        """Writes the changed progress of a trial."""
        key = self._id(trial)
        self._storage.set_trial_user_attr(key, PROGRESS, _progress_of(trial))
        return self._trial(key)

    def _id(self, trial: Trial) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study, trial.number)

    def _trial(self, key: int) -> Trial:
        return _as_trial(self._storage.get_trial(key), self._rungs)


def _open(path: Path, url: str) -> BaseStorage:
    if url:
        try:
            return RDBStorage(url)
        except Exception as error:  # of SQLAlchemy and of the driver of the database
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RamifyError(
                f"--storage {url} cannot be opened: {first}",
                fix="give a URL of SQLAlchemy whose driver is installed, e.g. sqlite:///search.db",
            ) from None
    if path.exists():
        _remove_incomplete_line(path)
    return JournalStorage(JournalFileBackend(str(path), JournalFileSymlinkLock(str(path), grace_period=GRACE)))


def _remove_incomplete_line(path: Path) -> None:
    """Removes the end of a line that a machine wrote while it lost power; Optuna would refuse the whole file."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _progress_of(trial: Trial) -> dict[str, Any]:
    return {"target": trial.target, "results": [asdict(r) for r in trial.results], "attempts": trial.attempts}


def _as_trial(frozen: FrozenTrial, rungs: int) -> Trial:
    """A trial of Optuna with our attributes."""
    about, progress = frozen.user_attrs, frozen.user_attrs.get(PROGRESS, {})
    results = tuple(RungResult(**result) for result in progress.get("results", ()))
    target = int(progress.get("target", 0))
    state: State
    if frozen.state == TrialState.FAIL:
        state = "failed"
    elif frozen.state == TrialState.PRUNED:
        state = "refused"
    elif len(results) == rungs:
        state = "complete"
    else:
        state = "paused" if len(results) > target else "active"
    return Trial(
        number=frozen.number,
        params=dict(frozen.params),
        state=state,
        steps=about["steps"],
        results=results,
        target=target,
        memory=about.get("memory"),
        reason=about.get("reason", ""),
        attempts=int(progress.get("attempts", 0)),
        system_attrs=dict(frozen.system_attrs),
    )
