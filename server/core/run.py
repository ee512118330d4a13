"""Runs a plan: its choices at once, each one's tokens to pieces of the answer, and the metrics of it all."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from server.access.quota import Spending
from server.core.choice import Choice, cached_tokens, prompt_tokens
from server.core.drafted import DraftedChoice, ForkedChoice
from server.core.events import Piece
from server.core.generate import ChoiceRun
from server.core.merge import merged
from server.core.plan import ChoicePlan, Draft, Fork, Plan
from server.core.quarantine import BROKE
from server.core.reader import ChoiceReader, DraftReader, make_reader
from server.core.scheduler import Claim, Overdue
from server.core.serving import Serving
from server.core.thoughts import Recollection
from server.engine_client import EngineError, ReaderBehind, RequestBroke, RequestFailed
from server.errors import ApiError, BadRequestError, OverloadedError, QuarantinedError, RateLimitError, SlowReaderError
from server.metrics import RequestWatch
from server.telemetry.record import GenerationRecord


class Run:
    """One plan under way. What an answer says of `choices` at its end stands in them."""

    def __init__(self, plan: Plan, serving: Serving) -> None:
        self.plan = plan
        self.choices = [_choice(one, serving, is_conversation=plan.is_conversation) for one in plan.choices]
        self._serving = serving
        recalls = plan.is_conversation and plan.answer_format.calls and serving.profile.recalls_thinking
        self._recollections = [Recollection() for _ in plan.choices] if recalls else []
        self._notes = bool(self._recollections) or plan.record.texts is not None
        self._record = GenerationRecord(
            response_id=plan.id,
            mode=plan.mode,
            adapter="" if plan.adapter is None else plan.adapter.name,
            arrived=plan.record.arrived,
            operation="chat" if plan.is_conversation else "text_completion",
            max_tokens=max(one.sampling.max_tokens for one in plan.choices),
            prompts=[len(one.prompt_ids) for one in plan.choices],
            prompt_tokens=plan.prompt_tokens,
            generated=[0] * len(plan.choices),
        )

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The pieces of all choices as they come; raises ApiError."""
        plan, choices, serving, record = self.plan, self.choices, self._serving, self._record
        plan.record.generation = record
        with (
            serving.metrics.watch(record) as watch,
            _spending(plan, watch) as spent,
            serving.one_more(plan.id, choices, plan.caller.name),
            serving.intake.keeping(plan) as keep,
        ):
            readers = [make_reader(serving.fmt, plan, index, choice) for index, choice in enumerate(choices)]
            try:
                with serving.intake.claim(plan, watch.start) as claim:
                    async with (
                        serving.quarantine.watch(plan),
                        aclosing(merged([self._pieces(reader, claim) for reader in readers])) as pieces,
                    ):
                        async for piece in pieces:
                            reader = readers[piece.choice]
                            watch.advance(piece.choice, reader.choice, answering=reader.answering)
                            if piece.entries and plan.keeps_entries:
                                keep(piece.entries)
                            if self._notes:
                                self._note(piece)
                            yield piece
                for reader in readers:
                    piece = reader.finish()
                    watch.advance(piece.choice, reader.choice, answering=reader.answering)
                    self._note(piece)
                    yield piece
            except (asyncio.CancelledError, GeneratorExit):
                watch.outcome = "cancelled"
                raise
            except ReaderBehind as error:
                raise SlowReaderError from error
            except Overdue as error:
                watch.outcome = "rejected"
                raise serving.intake.overdue(plan.queues[0].mode) from error
            except (OverloadedError, QuarantinedError):
                watch.outcome = "rejected"
                raise
            except EngineError as error:
                if isinstance(error, RequestFailed) and not isinstance(error, RequestBroke):
                    watch.outcome = "rejected"
                raise self._told(error) from error
            else:
                watch.outcome = "completed"
            finally:
                spent.used = plan.prompt_tokens + sum(map(_spent, choices))
                self._note_end(record)
        self._remember()

    def _note(self, piece: Piece) -> None:
        """What the log, or the next request, shall know of it."""
        if self.plan.record.texts is not None:
            self.plan.record.texts.add(piece.choice, piece.events)
        if self._recollections:
            self._recollections[piece.choice].add(piece.events)

    def _told(self, error: EngineError) -> ApiError:
        """What a client is told of an error of the engine's."""
        match error:
            case RequestBroke():
                return self._serving.quarantine.refuse(self.plan, BROKE)
            case RequestFailed():
                return BadRequestError(str(error))
            case _:
                return self._serving.unavailable(str(error) or self._serving.describe_engine())

    def _pieces(self, reader: ChoiceReader | DraftReader, claim: Claim) -> AsyncGenerator[Piece, None]:
        plan = self.plan
        run = ChoiceRun(
            self._serving.engine,
            self._serving.scheduler,
            claim,
            reader.choice,
            f"{plan.id}-{reader.index}",
            cache_salt=plan.cache_salt,
            adapter=plan.adapter,
            one_by_one=bool(plan.stop.texts) or not plan.answer_format.parallel,
            kind=plan.mode,
        )
        return run.read(reader.read)

    def _note_end(self, record: GenerationRecord) -> None:
        choices = self.choices
        record.prompt_tokens = prompt_tokens(choices)
        record.cached_tokens = cached_tokens(choices)
        record.draft_tokens = sum(choice.draft_tokens for choice in choices)
        record.trial_tokens = sum(choice.trial_tokens for choice in choices)
        record.reasoning_tokens = sum(choice.reasoning_tokens for choice in choices)
        record.generated[:] = [choice.completion_tokens for choice in choices]
        record.finish_reasons = [choice.finish for choice in choices]
        record.reasoning_finish_reasons = [choice.thinking_finish for choice in choices]

    def _remember(self) -> None:
        """What answered a conversation comes back with its next request; but thinking does not, it is dropped.

        Where the family needs it beside its calls, it is known by them.
        """
        for one in self._recollections:
            self._serving.thoughts.remember(one.thought, one.call_ids, self.plan.owner)
        if not self.plan.is_conversation:
            return
        for choice in self.choices:
            if choice.thinking_finish is None:
                self._serving.generated.remember(choice.prompt_ids, choice.token_ids, self.plan.owner)


def _spent(choice: Choice) -> int:
    """All tokens that were drawn for it."""
    return choice.completion_tokens + choice.draft_tokens + choice.trial_tokens


def _choice(plan: ChoicePlan, serving: Serving, *, is_conversation: bool) -> Choice:
    """What a plan begins as. Of a raw text nobody knows what its tags mean."""
    think_end = serving.fmt.think_end()
    think_again = serving.fmt.think_again() if is_conversation else None
    match plan.draft:
        case Draft() as draft:
            return DraftedChoice(plan, draft, think_end, think_again, serving.fmt.think_again())
        case Fork() as fork:
            return ForkedChoice(plan, fork, think_end, think_again)
    choice = Choice(
        plan.prompt_ids, plan.sampling, think_end, plan.thinking, answer=plan.answer, think_again=think_again
    )
    choice.mode = plan.mode
    return choice


@contextmanager
def _spending(plan: Plan, watch: RequestWatch) -> Iterator[Spending]:
    """Counts the request against what its key may spend; raises RateLimitError."""
    try:
        with plan.caller.spending(plan.mode, plan.most_tokens) as spent:
            yield spent
    except RateLimitError:
        watch.outcome = "rejected"
        raise
