"""Sequence-level distillation: the teacher writes what students are trained on (Kim and Rush, 2016)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core import user_code
from edgeforge.core.artifact import Artifact, hash_file
from edgeforge.core.errors import DataError, IncompatiblePlanError
from edgeforge.core.kinds import OneOf
from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import Task, TaskData
from edgeforge.data import DataSource, Document
from edgeforge.data import _spec as specs
from edgeforge.data._files import existing
from edgeforge.data._near_duplicates import SHINGLE_WORDS, Known, letters
from edgeforge.data._row_files import objects
from edgeforge.filters import Context, Filter
from edgeforge.models import tokenizer
from edgeforge.stages import _answered as answered
from edgeforge.stages import _prompts_to_write as prompts_to_write
from edgeforge.store import CHECKPOINT
from edgeforge.teachers import TEACHER, Teacher
from edgeforge.teachers._writer import Writer
from edgeforge.training.mixture import WRITTEN
from edgeforge.training.recipe import default_teacher
from edgeforge.training.sampling import Sampling
from edgeforge.training.stream import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.stages._prompts_to_write import Prompt

    Write = Callable[[Sequence[Prompt], int], list[list[int]]]


class Generate(Stage, Sampling):
    """Let a teacher write texts; later training stages take them with ``mix: {stage: generate}`` (arXiv:1606.07947).

    This works between any two vocabularies, and it is how a model that chats learns to go on chatting while it is
    trained on plain texts. Left out are texts that repeat what is tested (the test part, the task's prompts, and
    `avoid`: at least half of the runs of five words of a text or of one of its messages), copies, empty answers, and
    answers in a chat that reached `max_new_tokens`.

    Facts: `documents`, `tokens` written in them, `left_out` by reason, and as lineage `teacher`, `prompts_sha256` and
    `settings`.
    """

    kind: Literal["generate"] = "generate"
    teacher: Annotated[Teacher, OneOf("edgeforge.teachers")] = Field(
        default=default_teacher(), description="Who writes."
    )
    prompts: str | None = Field(
        default=None,
        description="A file of JSON lines, each with `prompt` or `messages` (a chat to be answered) or `text` (to be "
        "continued); absent: the beginnings of training windows.",
    )
    prompt_tokens: int = Field(default=32, ge=1, description="Tokens of a window's beginning, without `prompts`.")
    count: int | None = Field(default=None, ge=1, description="Use at most this many prompts, evenly spread.")
    samples: int = Field(default=1, ge=1, description="Texts for each prompt.")
    max_new_tokens: int = Field(default=256, ge=1, description="Most tokens of a text.")
    spec: str | None = Field(
        default=None,
        description="For teachers that answer questions, instead of `prompts`: a YAML file that says what examples are "
        "to be made up (task, schemas, labels, constraints, seed examples, axes of diversity); `count` of them.",
    )
    filters: tuple[Annotated[Filter, OneOf("edgeforge.filters")], ...] | None = Field(
        default=None,
        description="For teachers that answer questions: what is kept. Absent: no copies, and nothing that repeats "
        "what is tested.",
    )
    opinions: int = Field(
        default=0,
        ge=0,
        description="Of a `spec`, with `agreement` among the filters: how often the teacher answers each made-up input "
        "again; an example is kept whose output is what most of its answers say.",
    )
    avoid: tuple[str, ...] = Field(
        default=(),
        description="Further files of JSON lines whose `text`, `prompt` and `messages` are not to be repeated.",
    )
    batch_size: int = Field(default=16, ge=1, description="Texts that are written side by side.")
    runtime: Literal["torch", "llama_cpp"] = Field(
        default="torch", description="What runs the teacher; `llama_cpp`, on a float16 GGUF file, is faster on CPUs."
    )

    makes: ClassVar[str] = "dataset"
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.data._json_schema",
        "edgeforge.data._near_duplicates",
        "edgeforge.data._spec",
        "edgeforge.data._spec_prompts",
        "edgeforge.filters._examples",
        "edgeforge.models.chat",
        "edgeforge.models.loading",
        "edgeforge.models.tokenizer",
        "edgeforge.runtimes._llama.model",
        "edgeforge.runtimes._llama.session",
        "edgeforge.stages._answered",
        "edgeforge.stages._llama_writer",
        "edgeforge.stages._prompts_to_write",
    )

    def identity(self) -> dict[str, Any]:
        said = self.model_dump(mode="json", exclude={"name", "teacher", "prompts", "spec", "avoid"})
        files = {"prompts_sha256": self._prompts_digest(), "avoid": [_digest(path) for path in self.avoid]}
        if not isinstance(self.teacher, Writer):
            return {**said, **files}
        # An answering teacher is no artifact, whose key would stand among the inputs'.
        code = [one.digest() for one in user_code.inside(self)]
        spec = None if self.spec is None else _digest(self.spec)
        return {**said, **files, "teacher": self.teacher.identity(), "code": code, "spec_sha256": spec}

    def sources(self) -> Mapping[str, Any]:
        return {TEACHER: None, **self.teacher.sources()}

    def check(self) -> None:
        if not isinstance(self.teacher, Writer) and (self.teacher.recorded() or TEACHER not in self.teacher.sources()):
            raise IncompatiblePlanError(
                f"a `{self.teacher.kind}` teacher cannot write", where="teacher", remedy="use `teacher: model`"
            )
        if isinstance(self.teacher, Writer):
            self._check_writer()
        elif self.spec is not None or self.filters is not None or self.opinions:
            raise IncompatiblePlanError(
                f"`spec` and `filters` are for teachers that answer questions, and a `{self.teacher.kind}` teacher "
                "goes on with texts",
                where=next(name for name in ("spec", "filters", "opinions") if getattr(self, name)),
                remedy="leave it out, or use `teacher: endpoint` or `program`",
            )
        if self.runtime == "llama_cpp":
            from edgeforge.runtimes.llama_cpp import LlamaCpp

            if reason := LlamaCpp().available():
                raise IncompatiblePlanError(reason, where="runtime", remedy="install it, or use `runtime: torch`")

    def rehearse(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        if not task.open().interface.per_token:
            raise IncompatiblePlanError(
                "only a language model writes texts, and this task has a label for each sample",
                where=self.name or self.kind,
                remedy="leave this stage out",
            )
        if isinstance(self.teacher, Writer):
            self.teacher.check_ready()
        if self.spec is not None:
            specs.read(existing(self.spec))
        if self.prompts is not None:
            found = prompts_to_write.from_file(existing(self.prompts))
            if isinstance(self.teacher, Writer):
                answered.questions([(document, None) for document in found])
        return model

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        folder = inputs["teacher"].path
        data = job.task.open(folder)
        if isinstance(self.teacher, Writer):
            return self._answers(self.teacher, data, job, folder)
        prompts = self._prompts(data, folder)
        stream = Stream(job.folder / CHECKPOINT, "written.jsonl")
        asked = [(number, sample) for number in range(len(prompts)) for sample in range(self.samples)]
        if stream.done < len(asked):
            write = self._writer(inputs["teacher"], job, folder)
            for start in range(stream.done, len(asked), self.batch_size):
                batch = asked[start : start + self.batch_size]
                found = write([prompts[number] for number, _ in batch], start)
                lines = [json.dumps([number, ids]) for (number, _), ids in zip(batch, found, strict=True)]
                stream.append("".join(f"{line}\n" for line in lines).encode(), start + len(batch))
                job.progress.update(stream.done, len(asked))
        raw = job.folder / "written.jsonl"
        stream.finish(raw)
        facts = self._keep(raw, prompts, data, job, folder)
        raw.unlink()
        settings = self.model_dump(mode="json", exclude={"name", "kind", "teacher", "prompts", "avoid"})
        lineage = {"teacher": inputs["teacher"].key, "prompts_sha256": self._prompts_digest(), "settings": settings}
        return {**facts, **lineage}

    def _check_writer(self) -> None:
        """Refuse, for a teacher that answers questions, what only a model heeds. Raises IncompatiblePlanError."""
        ours = {"max_new_tokens", "samples", "batch_size", "runtime", "prompt_tokens", *Sampling.model_fields}
        for name in sorted(ours & self.model_fields_set):
            raise IncompatiblePlanError(
                f"a `{self.teacher.kind}` teacher does not heed `{name}` of the stage",
                where=name,
                remedy=f"say it in the teacher; see `edgeforge explain {self.teacher.kind}`",
            )
        if (self.prompts is None) == (self.spec is None):
            raise IncompatiblePlanError(
                f"a `{self.teacher.kind}` teacher answers a file of `prompts`, or makes up examples of a `spec`",
                where="prompts",
                remedy="give one of them",
            )
        answered.check_opinions(self.spec, self.filters or (), self.opinions)

    def _answers(self, teacher: Writer, data: TaskData, job: Job, folder: Path) -> dict[str, Any]:
        """Ask a teacher that answers questions, keep what is worth it; return the facts."""
        filters = answered.USUAL if self.filters is None else self.filters
        tested = [*prompts_to_write.tested(data, folder), *self._avoided(job.task), *_tested(job.task)]
        if self.spec is not None:
            spec = specs.read(existing(self.spec))
            context = Context((*tested, *_inputs(spec, tested)), job.seed)
            wanted = answered.Wanted(spec, self.count or answered.SPEC_COUNT, self.opinions)
            kept = answered.examples_of(wanted, teacher, filters, context, job.progress)
        else:
            assert self.prompts is not None
            context = Context(tested, job.seed)
            found = prompts_to_write.with_answers(existing(self.prompts))
            step = 1 if self.count is None else max(1, len(found) / self.count)
            chosen = [found[int(place * step)] for place in range(min(self.count or len(found), len(found)))]
            kept = answered.answers_to(answered.questions(chosen), teacher, filters, context, job.progress)
        facts = answered.write(kept, job.folder / WRITTEN, _as_json)
        return {**facts, "teacher": teacher.identity(), "prompts_sha256": self._prompts_digest()}

    # -- what is asked

    def _prompts(self, data: TaskData, folder: Path) -> list[Prompt]:
        if self.prompts is None:
            found = prompts_to_write.beginnings(data, folder, self.prompt_tokens)
        else:
            found = prompts_to_write.read(prompts_to_write.from_file(existing(self.prompts)), folder)
        if self.count is None or self.count >= len(found):
            return found
        return [found[index * len(found) // self.count] for index in range(self.count)]

    def _prompts_digest(self) -> str | None:
        return None if self.prompts is None else _digest(self.prompts)

    # -- who writes

    def _writer(self, teacher: Artifact, job: Job, folder: Path) -> Write:
        """Prompts, and the number of the first of them -> what was written after each, with the token that ended it."""
        import torch

        from edgeforge.models import loading
        from edgeforge.training import sampling
        from edgeforge.training.precision import autocast

        ends = _ends(folder)
        if self.runtime == "llama_cpp":
            from edgeforge.stages._llama_writer import LlamaWriter

            llama = LlamaWriter(teacher, job, job.folder / CHECKPOINT / "gguf")

            def with_llama(prompts: Sequence[Prompt], first: int) -> list[list[int]]:
                ids = [prompt.ids for prompt in prompts]
                generator = torch.Generator().manual_seed(derive(job.seed, "generate", first))
                return llama.write(ids, self, tokens=self.max_new_tokens, ends=ends, generator=generator)

            return with_llama
        device = job.accelerator.device
        model = loading.load(folder).to(device)

        def with_torch(prompts: Sequence[Prompt], first: int) -> list[list[int]]:
            ids = [prompt.ids for prompt in prompts]
            generator = torch.Generator(device=device).manual_seed(derive(job.seed, "generate", first))
            with torch.inference_mode(), autocast("auto", device):
                return sampling.write(model, ids, self, tokens=self.max_new_tokens, ends=ends, generator=generator)

        return with_torch

    # -- what is kept

    def _keep(self, raw: Path, prompts: Sequence[Prompt], data: TaskData, job: Job, folder: Path) -> dict[str, Any]:
        """Write the documents that are worth it; return how many, and why the others are not."""
        reader, ends = tokenizer.read(folder), _ends(folder)
        known = Known([*prompts_to_write.tested(data, folder), *self._avoided(job.task)])
        left_out: Counter[str] = Counter()
        documents, tokens = 0, 0
        seen: set[str] = set()
        with raw.open(encoding="utf-8") as lines, (job.folder / WRITTEN).open("w", encoding="utf-8") as kept:
            for line in lines:
                number, ids = json.loads(line)
                prompt = prompts[number]
                answer = reader.decode(ids, skip_special_tokens=True)
                whole = reader.decode([*prompt.ids, *ids], skip_special_tokens=True)
                document = prompt.answered(answer, whole)
                reason = _unusable(document, answer, ended=ids[-1] in ends, known=known)
                text = letters(whole)
                if reason is None and text in seen:
                    reason = "copies"
                if reason is not None:
                    left_out[reason] += 1
                    continue
                seen.add(text)
                kept.write(json.dumps(_as_json(document), ensure_ascii=False) + "\n")
                documents, tokens = documents + 1, tokens + len(ids)
        if not documents:
            raise DataError(
                f"nothing that the teacher wrote can be used: {_listed(left_out)}",
                where=self.name or self.kind,
                remedy="raise `max_new_tokens`, or give other prompts than those that are tested",
            )
        if sum(left_out.values()) > documents:
            job.progress.warn(f"more than half of what the teacher wrote is left out: {_listed(left_out)}")
        return {"documents": documents, "tokens": tokens, "left_out": dict(sorted(left_out.items()))}

    def _avoided(self, task: Task) -> Iterator[str]:
        """Texts of `avoid`, and of the prompts that the task itself asks."""
        asked = getattr(task, "prompts", None)
        for path in (*self.avoid, *([asked] if asked else ())):
            for value, _ in objects(existing(path), prompts_to_write.REMEDY):
                yield from (str(value[key]) for key in ("text", "prompt") if value.get(key))
                messages = value.get("messages")
                for message in messages if isinstance(messages, list) else ():
                    if isinstance(message, dict):
                        yield str(message.get("content", ""))


def _tested(task: Task) -> Iterator[str]:
    """What is said in the test part, one by one: a window holds the ends and beginnings of many."""
    source = getattr(task, "data", None)
    if isinstance(source, DataSource):
        for document in source.documents().test:
            yield from (message.content for message in document.messages)


def _inputs(spec: specs.DataSpec, tested: Sequence[str]) -> Iterator[str]:
    """What is tested without the words that stand before every question: examples have their inputs so."""
    before = f"{spec.instruction}\n\n"
    yield from (text.removeprefix(before) for text in tested if spec.instruction and text.startswith(before))


def _unusable(document: Document, answer: str, *, ended: bool, known: Known) -> str | None:
    """Why a document is left out; None where it is kept."""
    if not answer.strip():
        return "empty"
    if "\0" in answer:
        return "no text"
    if document.messages and not ended:
        return "unfinished"
    asked = [message.content for message in document.messages if message.role != "assistant"]
    said = [*asked, document.text]
    if len(letters(answer).split()) >= SHINGLE_WORDS:  # many a question is answered with "Yes"
        said.append(answer)
    return "repeats what is tested" if any(text and known.holds(text) for text in said) else None


def _as_json(document: Document) -> dict[str, Any]:
    if document.messages:
        return {"messages": [{"role": message.role, "content": message.content} for message in document.messages]}
    return {"text": document.text}


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def _ends(folder: Path) -> frozenset[int]:
    """The tokens that end a text or a turn."""
    named = (tokenizer.end_of_text(folder), tokenizer.read(folder).eos_token_id)
    return frozenset(int(token) for token in named if token is not None)


def _digest(path: str) -> str:
    return hash_file(existing(path))
