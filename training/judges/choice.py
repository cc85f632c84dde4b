"""Makes the judges that a configuration names.

In the pipeline evaluation asks here; each kind is imported only where it is named, a reward model brings
torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.errors import ConfigError
from training.judges.formulas import edit_judge, gold_judge
from training.judges.protocol import Judge
from training.judges.settings import EvaluationConfig, JudgeName

Progress = Callable[[int, int], None]
NEEDED = {
    "reward_model": "evaluation.reward_model.path=DIR_OR_NAME",
    "llm": "evaluation.llm.url=http://HOST/v1 evaluation.llm.model=NAME",
}


def check_judges(names: tuple[JudgeName, ...], evaluation: EvaluationConfig) -> None:
    """Raises `ConfigError`: a judge is named whose settings are missing."""
    for name in names:
        if name in NEEDED and getattr(evaluation, name) is None:
            raise ConfigError(f"judge {name} has no settings; add {NEEDED[name]}")


def make_judge(
    name: JudgeName,
    evaluation: EvaluationConfig,
    directory: Path,
    progress: Progress = lambda done, total: None,
) -> Judge:
    """The judge of that name. `directory`: where kept answers and people's verdicts are, unless the settings
    name another place.

    Raises:
        ConfigError, CheckpointError: settings are missing, or name what is not there.
    """
    check_judges((name,), evaluation)
    if name == "gold":
        return gold_judge()
    if name in ("edit", "edit+toxicity"):
        return edit_judge()
    if name == "people":
        from training.judges.people import VERDICTS, PeopleJudge

        place = evaluation.people or directory / "people"
        if not (place / VERDICTS).exists():
            raise ConfigError(
                f"nobody has judged in {place} yet; let people judge first: "
                f"pit-train judge serve {directory / 'texts.jsonl'} --output {place}"
            )
        return PeopleJudge(place)
    if name == "llm":
        from training.judges.llm import LlmJudge

        assert evaluation.llm is not None
        return LlmJudge(evaluation.llm, evaluation.llm.cache or directory / "judge_cache.sqlite", progress)
    from training.judges.reward_model import reward_model_judge

    assert evaluation.reward_model is not None
    return reward_model_judge(evaluation.reward_model, progress)
