"""Many questions side by side, each answer on disk before anything else happens to it, and a cap that is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeforge.core.errors import EnvironmentProblem

if TYPE_CHECKING:
    from edgeforge.core.stage import Progress
    from edgeforge.teachers._endpoint_account import Account
    from edgeforge.teachers._endpoint_clients import Client
    from edgeforge.teachers._journal import Journal
    from edgeforge.teachers._writer import Chat


@dataclass(frozen=True)
class Question:
    """One answer that is wanted: the prompt's position, the sample's number, and the key it is kept under."""

    prompt: int
    sample: int
    key: str
    chat: Chat


class Asking:
    """Ask what the journal does not hold. Answers are in the journal and nowhere else.

    `connect` is called where there is something to ask.
    """

    def __init__(self, connect: Callable[[], Client], journal: Journal, account: Account, progress: Progress) -> None:
        self._connect, self._journal, self._account, self._progress = connect, journal, account, progress
        self._running: dict[Future[Mapping[str, Any]], tuple[Question, float]] = {}
        self._done = self._total = 0

    def run(self, questions: Sequence[Question], concurrency: int) -> bool:
        """Whether all were asked: False where another one might have cost more than is left.

        Raises the first problem of a request, after those on their way have ended and what they brought is kept.
        """
        distinct = {question.key: question for question in questions}
        waiting: deque[Question] = deque()
        for question in distinct.values():
            known = self._journal.get(question.key)
            if known is None:
                waiting.append(question)
            else:
                self._account.count(question.chat, known)
        self._done, self._total = len(distinct) - len(waiting), len(distinct)
        if not waiting:
            return True
        client, problem = self._connect(), None
        # Leaving the block, by an interrupt too, waits for the requests on their way: they are paid for.
        with ThreadPoolExecutor(concurrency) as pool:
            while True:
                while waiting and problem is None and len(self._running) < concurrency:
                    reserved = self._account.reserve(waiting[0].chat)
                    if reserved is None:
                        break
                    question = waiting.popleft()
                    self._running[pool.submit(self._one, client, question)] = (question, reserved)
                if not self._running:
                    break
                problem = self._settle() or problem
        if problem is not None:
            raise self._resumable(problem)
        return not waiting

    def _one(self, client: Client, question: Question) -> Mapping[str, Any]:
        answer = client.ask(question.chat)
        self._journal.append(question.key, answer)
        return answer

    def _settle(self) -> EnvironmentProblem | None:
        """Wait for an answer, and account for it; the problem, where there was one."""
        problem = None
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            question, reserved = self._running.pop(future)
            self._account.release(reserved)
            try:
                self._account.count(question.chat, future.result())
            except EnvironmentProblem as error:
                problem = error
                continue
            self._done += 1
            self._progress.update(self._done, self._total)
        return problem

    def _resumable(self, problem: EnvironmentProblem) -> EnvironmentProblem:
        kept = f"{self._done} of {self._total} answers are kept, and are not asked for again"
        return EnvironmentProblem(problem.what, where=problem.where, remedy=f"{problem.remedy}; {kept}")
