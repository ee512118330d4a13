"""lm-eval as a process: `local-chat-completions` on sums of reasoning-gym, a task for each mode."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.families import held_out_items
from tests.clients.scenarios import MODEL

pytestmark = pytest.mark.engine
LM_EVAL = Path(sys.executable).parent / "lm_eval"
TASKS = Path(__file__).parent / "lm_eval"
ITEMS = 8


def evaluate(url: str, folder: Path) -> Path:
    """Runs both tasks; the folder of what lm-eval writes."""
    data = folder / "sums.jsonl"
    items = held_out_items(["chain_sum"], ITEMS, seed=5)
    data.write_text("".join(json.dumps({"question": item.question, "answer": item.answer}) + "\n" for item in items))
    for task in TASKS.glob("*.yaml"):
        (folder / task.name).write_text(task.read_text().replace("DATA", str(data)))
    command: list[str | Path] = [
        LM_EVAL, "run", "--model", "local-chat-completions", "--apply_chat_template", "--log_samples",
        "--model_args", f"model={MODEL},base_url={url}/chat/completions,num_concurrent=4,max_retries=1",
        "--tasks", "sums_standard,sums_reasoning", "--include_path", folder, "--output_path", folder / "out",
    ]  # fmt: skip
    environment = os.environ | {"HF_HOME": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.timeout(600)
def test_both_modes_are_scored(url: str, tmp_path: Path) -> None:
    out = evaluate(url, tmp_path)
    (file,) = out.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    scores = {mode: results[f"sums_{mode}"]["exact_match,none"] for mode in ("standard", "reasoning")}
    for mode, score in scores.items():
        (file,) = out.rglob(f"samples_sums_{mode}_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        answers = [sample["resps"][0][0] for sample in samples]
        assert len(answers) == ITEMS
        assert all(answers)
        assert not any("think" in answer for answer in answers)
        assert score == sum(sample["exact_match"] for sample in samples) / ITEMS
    assert scores["reasoning"] >= 0.75  # the checkpoint's own score is over 0.9
    assert scores["reasoning"] >= scores["standard"]
