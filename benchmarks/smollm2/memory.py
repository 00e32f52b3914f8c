"""How much memory a GGUF file takes to write and to quantize, beyond one copy of the weights it is made from.

Llamas of SmolLM2-135M's shape with 10, 20 and 40 blocks and random weights. Every step runs in a process of its own,
with its libraries imported and its peak set back (Linux) before it begins; pages of files that are mapped count. What
is left after one copy of the step's own input must not grow with the number of blocks: tensors are read, turned and
written one after another.

    edgeforge fetch smollm2-135m --out data
    python -m benchmarks.smollm2.memory --data data --work data/smollm2-memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.measuring import read_row, write_row
from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.environment import describe
from edgeforge.gguf_file import MODEL
from edgeforge.links._worker import peak_rss_bytes

RESULT = Path(__file__).parent / "rows" / "memory.json"
BLOCKS = (10, 20, 40)
STEPS = ("export", "q8_0", "q4_k_m")
"""Writing float16 from torch's float32, and llama.cpp's quantization of that file."""


def make_model(folder: Path, blocks: int, tokenizer: Path) -> None:
    """A torch artifact in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgeforge.models import loading

    config = AutoConfig.for_model(
        "llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=blocks,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    loading.save(AutoModelForCausalLM.from_config(config).float(), folder, tokenizer_from=tokenizer)


def one(step: str, work: Path) -> dict[str, int]:
    """Do a step of one model; bytes of its input, of memory before it, and of its peak."""
    from accelerate import Accelerator
    from rich.console import Console

    from edgeforge.core.stage import Job
    from edgeforge.exporters.gguf import Gguf
    from edgeforge.progress import TerminalWatcher
    from edgeforge.runtimes._llama.library import library
    from edgeforge.runtimes._llama.quantization import Recipe, quantize

    library()
    torch_folder, written = work / "torch", work / "f16"
    written.mkdir(exist_ok=True)
    files = hash_folder(torch_folder)
    model = Artifact("model", "", "torch", torch_folder, digest_files(files), files, {}, {}, {})
    job = Job(None, written, 0, lambda: Accelerator(cpu=True), TerminalWatcher(Console()))  # type: ignore[arg-type]
    source = written / MODEL if step != "export" else torch_folder / "model.safetensors"
    if step == "export":  # which imports them when it begins
        import safetensors.numpy  # noqa: F401
        import transformers  # noqa: F401

    before = _set_peak_back()
    if step == "export":
        Gguf().export(model, job)
    else:
        quantize(source, work / f"{step}.gguf", Recipe(step)).path.unlink()
    return {"input_bytes": source.stat().st_size, "before_bytes": before, "peak_bytes": peak_rss_bytes()}


def _set_peak_back() -> int:
    """Have the system forget this process's peak; what it holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_rss_bytes()


def measured(step: str, work: Path) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.smollm2.memory", "--work", str(work), "--step", step]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    found["beyond_one_copy_bytes"] = found["peak_bytes"] - found["before_bytes"] - found["input_bytes"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="models; may be removed afterwards")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(one(options.step, options.work)))
        return
    if read_row(RESULT):
        return
    from edgeforge.models.gguf import Gguf

    tokenizer = Gguf(path=str(options.data / "smollm2_135m.gguf")).folder()
    found: dict[str, dict[str, dict[str, int]]] = {step: {} for step in STEPS}
    for blocks in BLOCKS:
        work = options.work / f"{blocks}-blocks"
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "torch").is_dir():
            make_model(work / "torch", blocks, tokenizer)
        for step in STEPS:
            found[step][str(blocks)] = measured(step, work)
            print(step, blocks, found[step][str(blocks)], flush=True)
    write_row(RESULT, {"steps": found, "environment": describe()})


if __name__ == "__main__":
    main()
