"""What a log knows of the kernels that a session tunes, from before and from others meanwhile."""

from __future__ import annotations

from collections.abc import Iterable

from lutcc.schedules.space import Config
from lutcc.tuning.logfile import LogFile, best
from lutcc.tuning.records import Record


class History:
    """The records of a session's workloads on its processor.

    Parameters
    ----------
    log
        Where they are, and where new ones go.
    session
        Id of the session that writes.
    workloads
        Ids of what it tunes.
    related
        Records of other workloads or processors.
    resume
        Go on from what the log knows.

    Attributes
    ----------
    related
        Those given, and after :meth:`read` those of other workloads in the log.
    """

    def __init__(
        self,
        log: LogFile,
        session: str,
        workloads: Iterable[str],
        *,
        related: Iterable[Record] = (),
        resume: bool = True,
    ) -> None:
        self.log, self.session, self.resume = log, session, resume
        self.related = list(related)
        self._records: dict[str, list[Record]] = {workload: [] for workload in workloads}
        self._confirmed: dict[str, Config] = {}
        self._seen = 0

    def read(self) -> None:
        """Take in the log."""
        earlier: list[Record] = []
        for record in self.log.read():
            if record.workload.id not in self._records:
                self.related.append(record)
                continue
            earlier.append(record)
            if self.resume:
                self.add(record)
        self._confirmed = {key: record.config for key, record in best(earlier).items()}
        self._seen = self._size()

    def news(self) -> list[Record]:
        """Return what other sessions have recorded of these workloads, if anything is new."""
        if self._size() == self._seen:
            return []
        found = [
            record
            for record in self.log.read()
            if self.resume
            and record.session != self.session
            and record.workload.id in self._records
        ]
        self._seen = self._size()
        return found

    def append(self, record: Record) -> None:
        """Write a record of this session."""
        self.log.append(record)
        self.add(record)

    def add(self, record: Record) -> None:
        """Count a record that is in the log already."""
        self._records[record.workload.id].append(record)

    def of(self, workload: str) -> list[Record]:
        """Return the records of a workload."""
        return self._records[workload]

    def confirmed(self, workload: str) -> Config | None:
        """Return the config that the log called best before this session."""
        return self._confirmed.get(workload)

    def best(self, workload: str) -> Record | None:
        """Return the record whose config a compiler that reads the log will take."""
        return best(self._records[workload]).get(workload)

    def _size(self) -> int:
        return self.log.path.stat().st_size if self.log.path.exists() else 0
